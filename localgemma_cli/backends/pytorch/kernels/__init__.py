"""Matrix products in C for CPUs, with Python wrappers that check their results before use."""
