"""Loading models: through transformers, or by loaders of our own for formats that it does not load."""
