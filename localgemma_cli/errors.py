"""What can go wrong: one line what happened, one line what to do, an exit code."""

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1
    USAGE = 2
    ACCESS = 3
    NOT_FOUND = 4
    MEMORY = 5
    CONTEXT = 6
    ENDPOINT = 7
    INTERRUPTED = 130


_SHOWN = 300  # characters of a message that others wrote


class LocalGemmaError(Exception):
    """Base of every error that is meant for the user; `kind` is its stable name in `--json`."""

    exit_code = ExitCode.FAILURE
    kind = "failure"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LocalGemmaError):
    exit_code = ExitCode.USAGE
    kind = "usage"


class AccessError(LocalGemmaError):
    """Gated model, missing or bad token."""

    exit_code = ExitCode.ACCESS
    kind = "access"


class NotFoundError(LocalGemmaError):
    """A model, adapter or file that is not there, or cannot be loaded."""

    exit_code = ExitCode.NOT_FOUND
    kind = "not_found"


class NetworkError(NotFoundError):
    """The hub cannot be reached, or may not be (`--offline`), and the model is not on disk."""

    kind = "network"


class DiskSpaceError(LocalGemmaError):
    kind = "disk"


class SavingError(LocalGemmaError):
    """Conversations cannot be saved or read back."""

    kind = "saving"


class DoesNotFitError(LocalGemmaError):
    exit_code = ExitCode.MEMORY
    kind = "memory"


class ContextOverflowError(LocalGemmaError):
    """The conversation has more tokens than the context holds."""

    exit_code = ExitCode.CONTEXT
    kind = "context"


class EndpointError(LocalGemmaError):
    exit_code = ExitCode.ENDPOINT
    kind = "endpoint"


class InterruptedAnswer(LocalGemmaError):
    """Ctrl-C before there was an answer."""

    exit_code = ExitCode.INTERRUPTED
    kind = "interrupted"


ENDINGS = (KeyboardInterrupt, SystemExit, GeneratorExit)  # of the program, not of what it does just now


def unforeseen(error: BaseException) -> LocalGemmaError:
    """What nobody thought of, as an error for the user."""
    if isinstance(error, LocalGemmaError):
        return error
    what = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
    if isinstance(error, MemoryError):
        what = "the memory is full"
    wrapped = LocalGemmaError(f"Something unforeseen went wrong: {what}", "Run it with -v to see where.")
    wrapped.__cause__ = error
    return wrapped
