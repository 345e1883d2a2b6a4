"""Errors for the user: a message, a hint what to do, an exit code."""

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
    INCOMPLETE = 8
    BAD_ROWS = 9
    INTERRUPTED = 130
    TERMINATED = 143  # by SIGTERM


_QUOTED_LENGTH = 300  # characters of another program's message


class LocalGemmaError(Exception):
    """Base class of errors that are shown to the user; `kind` is the stable name in `--json`."""

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
    """A gated model, or a missing or invalid token."""

    exit_code = ExitCode.ACCESS
    kind = "access"


class NotFoundError(LocalGemmaError):
    """A model, adapter or file that is missing or cannot be loaded."""

    exit_code = ExitCode.NOT_FOUND
    kind = "not_found"


class NetworkError(NotFoundError):
    """The model is not on disk, and the hub is not reachable or not allowed (`--offline`)."""

    kind = "network"


class DiskSpaceError(LocalGemmaError):
    kind = "disk"


class SavingError(LocalGemmaError):
    """Conversations cannot be saved or loaded."""

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


class IncompleteAnswer(LocalGemmaError):
    """An answer that had to be whole or of a form, and is not; `text` is what there is of it."""

    exit_code = ExitCode.INCOMPLETE
    kind = "incomplete"

    def __init__(self, message: str, hint: str, text: str = "") -> None:
        super().__init__(message, hint)
        self.text = text


class BadRowsError(LocalGemmaError):
    """A batch is complete, with rows that have an error instead of an answer."""

    exit_code = ExitCode.BAD_ROWS
    kind = "bad_rows"


class InterruptedAnswer(LocalGemmaError):
    """Ctrl-C before the first token of an answer."""

    exit_code = ExitCode.INTERRUPTED
    kind = "interrupted"


EXIT_EXCEPTIONS = (
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
)  # these end the program; do not catch them as failures


def as_user_error(error: BaseException) -> LocalGemmaError:
    """The error itself if it is for the user, else wrapped as an unexpected one."""
    if isinstance(error, LocalGemmaError):
        return error
    what = " ".join(str(error).split())[:_QUOTED_LENGTH] or type(error).__name__
    if isinstance(error, MemoryError):
        what = "out of memory"
    wrapped = LocalGemmaError(f"Unexpected error: {what}", "Run it again with -v to see where it happened.")
    wrapped.__cause__ = error
    return wrapped


def first_line(error: BaseException) -> str:
    """The first line of a library's message; the name of the error if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
