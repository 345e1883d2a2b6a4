"""`localgemma serve`: an OpenAI-compatible HTTP server over any backend. Imports no torch."""
