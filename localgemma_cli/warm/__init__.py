"""A process that keeps a loaded model for later calls (`--keep-alive`), and its clients."""
