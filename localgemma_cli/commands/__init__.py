"""One module per command: parse fully, then act."""
