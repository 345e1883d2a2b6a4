"""Generating tokens: prefill, decoding, sampling, the KV cache, CUDA graphs and speculative decoding."""
