"""Compiled products for processors, each beside a reference in torch."""
