"""The words of a batch's progress."""

import pytest

from localgemma_cli.batch import progress
from localgemma_cli.batch.progress import BatchProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_has_a_bar_the_rate_and_the_time_left(clock: list[float]) -> None:
    bar = BatchProgress(1000, "utf-8")
    clock[0] += 20
    assert bar.describe(50, 0, 250) == "█████░░░░░░░░░░░░░░░ 25% · 50 rows · 2.5 rows/s · 1:00 left"
    assert bar.describe(1, 1, 4).endswith("0% · 1 row · 0.05 rows/s · 1 failed · 1:23:00 left")
    assert BatchProgress(1000, "ascii").describe(0, 0, 0).startswith("-------------------- 0% · 0 rows")


def test_rows_of_earlier_runs_do_not_count_for_the_rate(clock: list[float]) -> None:
    bar = BatchProgress(1000, "utf-8", rows=500, read=500)
    assert bar.describe(500, 0, 500).endswith("50% · 500 rows · 0 rows/s")
    clock[0] += 10
    assert bar.describe(520, 0, 600).endswith("60% · 520 rows · 2 rows/s · 0:40 left")


def test_a_pipe_has_no_end_to_wait_for(clock: list[float]) -> None:
    bar = BatchProgress(None, None)
    clock[0] += 1
    assert bar.describe(120, 3, 9999) == "120 rows · 120 rows/s · 3 failed"
