"""Slash commands: what a line means, and what each command does."""
