import pytest

from localgemma_cli.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"), [(18_483_411_968, "18.5 GB"), (4_000_000, "4.0 MB"), (0, "0.0 MB")]
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert format_bytes(count) == text
