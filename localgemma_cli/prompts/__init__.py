"""Conversation to token ids and back, for every engine. No torch, no transformers."""
