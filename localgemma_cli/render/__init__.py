"""Write answers, plans and progress: for a terminal, a pipe or a script."""
