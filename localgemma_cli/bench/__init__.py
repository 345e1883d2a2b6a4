"""`localgemma bench`: one job, one process of its own, one outcome."""
