"""Fixtures that run the real program, and a summary of what was skipped."""

import os
from pathlib import Path

import pytest
from support.program import Program
from support.skips import count_reasons

pytest_plugins = ["support.machines", "support.real_gguf"]

# Before torch reads it, here and in the programs that tests start: two test processes share the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The installed `localgemma`, with folders of its own and no network."""
    return Program(tmp_path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Group the skipped tests by what they need; under xdist the controller has all reports."""
    counts = count_reasons(report.longrepr for report in terminalreporter.getreports("skipped"))
    if counts:
        terminalreporter.section(f"{sum(counts.values())} tests skipped")
        for reason, count in counts.most_common():
            terminalreporter.write_line(f"{count:5}  {reason}")
