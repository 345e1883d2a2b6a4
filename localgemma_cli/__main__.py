"""The start of the program: handles Ctrl-C before anything else is imported."""

import os
import signal
from types import FrameType


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # the shell may ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        from localgemma_cli.cli import main as run

        run()
    except KeyboardInterrupt:  # before or after `run` can report it
        os._exit(130)


def interrupt(_signal: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; exit at once during an import, whose code may turn it into another error."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
