"""The only folder that imports torch or transformers."""
