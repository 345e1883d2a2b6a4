"""The interactive chat in a terminal: the prompt, its keys, its toolbar."""
