"""Weights as bytes: quantized, mapped from a file, streamed to a GPU."""
