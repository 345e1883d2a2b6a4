"""Fixtures that run the real program, and a summary of what was skipped."""

import os
from pathlib import Path

import pytest
from support.program import Program
from support.skips import count_reasons

pytest_plugins = ["support.machines", "support.real_gguf"]

# With files that take long at the end, one of two test processes would wait for the other.
LONGEST_FIRST = (
    "commands/test_bench.py",
    "backends/pytorch/test_tensor_parallel.py",
    "chat/terminal/test_endings.py",
    "commands/test_chat.py",
    "backends/pytorch/test_families.py",
    "hostile_files/test_model_files.py",
    "chat/terminal/test_interrupting.py",
    "backends/pytorch/loading/test_gguf.py",
    "backends/pytorch/lora/test_adapters.py",
    "bench/test_engines.py",
    "commands/test_names.py",
    "commands/test_transformers_serve.py",
    "chat/terminal/test_looks.py",
    "chat/terminal/test_repl.py",
    "prompts/test_template_process.py",
    "test_interrupted_start.py",
    "chat/test_chat_session.py",
    "test_package.py",
    "chat/test_overflow.py",
)

# Before torch reads it, here and in the programs that tests start: two test processes share the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The installed `localgemma`, with folders of its own and no network."""
    return Program(tmp_path)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist: files with many tests first
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Group the skipped tests by what they need; under xdist the controller has all reports."""
    counts = count_reasons(report.longrepr for report in terminalreporter.getreports("skipped"))
    if counts:
        terminalreporter.section(f"{sum(counts.values())} tests skipped")
        for reason, count in counts.most_common():
            terminalreporter.write_line(f"{count:5}  {reason}")
