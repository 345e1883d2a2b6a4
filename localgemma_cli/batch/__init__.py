"""`localgemma batch`: an answer for every row of a file or a pipe."""
