"""The share of the processor that other programs use: ours is not counted, theirs is."""

import subprocess
import sys
import time

import pytest

from localgemma_cli.bench.other_programs import ProcessorTimes, others_share, read_processor_times


@pytest.mark.parametrize(
    ("end", "share"),
    [
        (ProcessorTimes(whole=120, busy=60, own=45), 0.25),
        (ProcessorTimes(whole=120, busy=55, own=45), 0.0),
        (ProcessorTimes(whole=120, busy=55, own=46), 0.0),  # ticks are rounded
        (ProcessorTimes(whole=100.01, busy=51, own=40), 0.0),  # too short to tell
    ],
)
def test_the_share_is_of_what_is_not_our_own(end: ProcessorTimes, share: float) -> None:
    start = ProcessorTimes(whole=100, busy=50, own=40)
    assert others_share(start, end) == pytest.approx(share)


SPIN = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


def test_the_work_of_this_process_and_of_its_children_is_our_own() -> None:
    """Others may use the processor as much as they like: only what is ours is looked at."""
    start = read_processor_times()
    subprocess.run([sys.executable, "-c", SPIN.format(0.3)], check=True)
    running = subprocess.Popen([sys.executable, "-c", SPIN.format(0.3) + "\ninput()"], stdin=subprocess.PIPE)
    while read_processor_times().own - start.own < 0.6:
        time.sleep(0.05)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    last = read_processor_times()
    running.communicate(b"\n")
    assert last.own - start.own >= 0.9
    assert last.busy - start.busy >= 0.6  # the system looks a hundred times a second what each core does
    assert last.whole - start.whole >= last.busy - start.busy - 0.05


def test_the_work_of_another_program_is_not() -> None:
    """A grandchild whose parent has ended belongs to nobody here."""
    start = read_processor_times()
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SPIN.format(0.5)!r}])"
    subprocess.run([sys.executable, "-c", orphan], check=True)
    time.sleep(0.2)
    while (now := read_processor_times()).busy - start.busy < 0.5 + now.own - start.own:
        time.sleep(0.05)
    assert others_share(start, now) > 0
