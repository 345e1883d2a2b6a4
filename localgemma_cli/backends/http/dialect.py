"""What a dialect is, and how every dialect reads the values of a server's JSON."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localgemma_cli.conversation import Message, fold_system
from localgemma_cli.errors import EndpointError
from localgemma_cli.events import TokenLogprob, Usage
from localgemma_cli.sampling import Sampling

GEMMA_STOPS = ("<end_of_turn>", "<eos>")
_THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MOST_TOKENS = 10**12
_NO_TEXT = "an error without a message"


class ServerError(EndpointError):
    """An error that the server reported inside its answer; `text` is its own, not yet safe to display."""

    def __init__(self, text: str) -> None:
        super().__init__("The server failed.", "Check the server's log; ask again.")
        self.text = text


@dataclass(frozen=True)
class Piece:
    """The content of one message of a stream; `finish` is the server's own finish reason."""

    text: str = ""
    finish: str | None = None
    usage: Usage | None = None
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """One request, before a dialect writes it as JSON; `owner`: the software of the server."""

    messages: Sequence[Message]
    sampling: Sampling
    model: str | None
    penalty_name: str = "repetition_penalty"
    owner: str = ""


@dataclass(frozen=True)
class Dialect:
    """One server API.

    `shape` adapts the conversation to what the server can read, `body` writes the JSON of a request,
    `pieces` reads the answer. `stops` are stop strings that are applied here, not by the server.
    """

    name: str
    summary: str
    path: str
    models_path: str | None
    shape: Callable[[Sequence[Message]], Sequence[Message]]
    body: Callable[[ChatRequest], dict[str, object]]
    pieces: Callable[[Iterable[bytes]], Iterator[Piece]]
    stops: tuple[str, ...] = ()


def message_objects(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def sampling_fields(sampling: Sampling, penalty_name: str, *limit_names: str) -> dict[str, object]:
    """The sampling options that are set, as JSON fields; the names of penalty and limit vary by server."""
    penalty = None if sampling.repetition_penalty == 1.0 else sampling.repetition_penalty
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        penalty_name: penalty,
        "seed": sampling.seed,
        **dict.fromkeys(limit_names, sampling.max_new_tokens),
    }
    return {name: value for name, value in values.items() if value is not None}


def unchanged(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


def flatten_conversation(messages: Sequence[Message]) -> Sequence[Message]:
    """The whole conversation as one user message, for a server that reads only the last message."""
    *past, question = fold_system(messages)
    if not past:
        return [question]
    turns = (f"{'Me' if message.role == 'user' else 'You'}: {message.content.strip()}" for message in past)
    text = "\n\n".join(("Our conversation so far:", *turns, "Answer what I say next:", question.content))
    return [Message("user", text)]


def error_text(value: Mapping[str, Any]) -> str | None:
    """The error that an object reports, in any of the forms that servers use; None if it reports none."""
    error = value.get("error")
    if not error and (value.get("object") == "error" or value.get("status") == "error"):
        error = value.get("message") or _NO_TEXT
    if isinstance(error, Mapping):
        parts = (error.get("message"), error.get("type"), error.get("code"), error.get("param"))
        error = " · ".join(json_text(part) for part in parts if part) or _NO_TEXT
    return json_text(error) if error else None


def json_text(value: object) -> str:
    """Any JSON value as text for a message."""
    try:
        return str(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        return "an error that cannot be shown"


def token_count(value: object) -> int | None:
    """A number of tokens; None for any other JSON, and for a number out of range."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST_TOKENS else None


def as_mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; {} for any other JSON."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    """A JSON array; [] for any other JSON."""
    return value if isinstance(value, list) else []


def content_text(content: object) -> str:
    """The text of a `content` field, a string or a list of parts; "" for any other JSON."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(as_mapping(part).get("text"), str))
    return content if isinstance(content, str) else ""


def thinking_text(message: Mapping[str, Any]) -> str:
    """The thinking before the answer: the first field in use, since some servers send it in two."""
    return next(filter(None, (content_text(message.get(name)) for name in _THINKING_FIELDS)), "")


def finish_reason_of(value: object) -> str | None:
    """The server's finish reason; None while the answer has not ended."""
    return value if isinstance(value, str) and value else None
