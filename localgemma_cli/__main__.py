"""Where the program starts; so small that Ctrl-C has an answer from the first moment."""

import os
import signal
from types import FrameType


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else nobody is to interrupt it
        signal.signal(signal.SIGINT, interrupt)
    try:
        from localgemma_cli.cli import main as run

        run()
    except KeyboardInterrupt:  # before or after there is anybody to tell it better
        os._exit(130)


def interrupt(_signal: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but for the middle of an import: what is imported may make another error of it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
