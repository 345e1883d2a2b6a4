"""Errors that libraries raise while they load a model's files, as one error that names the file."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localgemma_cli.errors import LocalGemmaError, NotFoundError, first_line

_MESSAGE_LENGTH = 200  # characters of a library's message
_HELD_BYTES = 1 << 20


@contextmanager
def loading(what: str, path: Path) -> Iterator[None]:
    """Turn any error raised inside into a NotFoundError: the files in `path` may contain anything.

    Libraries check little. A wrong type fails where it is first used, with any kind of exception: an
    AssertionError, a RecursionError or, in the tokenizers library, a panic, which is not an Exception.
    """
    try:
        yield
    except (LocalGemmaError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise load_error(what, path, error) from error


def load_error(what: str, path: Path, error: BaseException) -> NotFoundError:
    """The NotFoundError for `what` in `path`: one line of the library's message."""
    message = first_line(error).strip().rstrip(".:")[:_MESSAGE_LENGTH] or type(error).__name__
    if isinstance(error, KeyError | AttributeError | AssertionError | IndexError):  # often only a name
        message = f"{type(error).__name__}: {message}" if str(error) else type(error).__name__
    return NotFoundError(
        f"The {what} in {path} cannot be loaded: {message}.",
        "Check the folder, or download the model again; -v shows the whole error.",
    )


@contextmanager
def suppress_panics() -> Iterator[None]:
    """Drop what a Rust panic writes to descriptor 2; other output to it is passed on."""
    try:
        before = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    panicked = False
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            panicked = not isinstance(error, Exception)
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            if not panicked and (output := held.read(_HELD_BYTES)):
                os.write(2, output)
