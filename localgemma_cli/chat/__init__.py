"""Turns: one answer, or the interactive loop."""
