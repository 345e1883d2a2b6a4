"""A server that answers over HTTP, behind the seam of `backends.base`."""
