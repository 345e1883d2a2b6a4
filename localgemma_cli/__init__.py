"""Chat with Google's Gemma on your own machine, from a terminal, a pipe or a script."""

__version__ = "0.1.0"
