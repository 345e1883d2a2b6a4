"""Where answers come from: one seam (`base`), a local and, later, a remote side."""
