"""The benchmark: jobs, each measured in its own process, and the report."""
