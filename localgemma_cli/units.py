"""Amounts of memory and disk as people read them."""


def format_bytes(count: float) -> str:
    """Bytes in decimal units, as the hub states file sizes: `18.5 GB`, `4.8 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 50_000_000 else f"{count / 1e6:.1f} MB"
