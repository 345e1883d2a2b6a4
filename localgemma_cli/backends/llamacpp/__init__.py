"""The llama.cpp backend, which runs GGUF files as they are. Imports no torch and no transformers."""
