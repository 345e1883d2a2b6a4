"""Limits of time on a machine that other programs use as well."""

import time

_WORK = 0.1  # seconds of the processor
_PAUSE = (
    6.0  # seconds for which a process may be stopped at any moment, by other programs or the machine's host
)


def patience(seconds: float) -> float:
    """What takes `seconds` on a machine of its own, as long as it may take here and now.

    A piece of work is measured by both clocks: as many times as it takes longer on the wall than on the
    processor, other programs have the processor instead. A fault has to last for longer: where it would be
    over in seconds by itself, the test makes it endless.
    """
    began, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < _WORK:
        pass
    return seconds * max(1.0, (time.perf_counter() - began) / _WORK) * 1.5 + _PAUSE
