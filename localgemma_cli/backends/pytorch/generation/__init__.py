"""Prefill, decode and the ways to make them faster."""
