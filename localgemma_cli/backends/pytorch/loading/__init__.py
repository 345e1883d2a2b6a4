"""Stored forms that transformers does not load by itself, or not without another package."""
