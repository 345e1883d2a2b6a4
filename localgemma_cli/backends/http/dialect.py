"""What a dialect is, and the values that all of them share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localgemma_cli.conversation import Message, folded
from localgemma_cli.errors import EndpointError
from localgemma_cli.events import Usage
from localgemma_cli.sampling import Sampling

GEMMA_STOPS = ("<end_of_turn>", "<eos>")
_THINKING = ("reasoning_content", "reasoning", "thinking")
_MOST_TOKENS = 10**12


class ServerError(EndpointError):
    """An error that the server wrote into its answer; `words` are its own, not yet fit to be shown."""

    def __init__(self, words: str) -> None:
        super().__init__("The server failed.", "Look at the server's log; ask again.")
        self.words = words


@dataclass(frozen=True)
class Piece:
    """What one message of a stream says; `finish` is the server's own word for why the answer ended."""

    text: str = ""
    finish: str | None = None
    usage: Usage | None = None
    thinking: str = ""


@dataclass(frozen=True)
class Ask:
    """One question for a server, as far as all dialects say it."""

    messages: Sequence[Message]
    sampling: Sampling
    model: str | None
    penalty_name: str = "repetition_penalty"


@dataclass(frozen=True)
class Dialect:
    """`shape` fits the conversation to what the server reads of it; `stops` are applied on our side."""

    name: str
    summary: str
    path: str
    models_path: str | None
    shape: Callable[[Sequence[Message]], Sequence[Message]]
    body: Callable[[Ask], dict[str, object]]
    pieces: Callable[[Iterable[bytes]], Iterator[Piece]]
    stops: tuple[str, ...] = ()


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def options(sampling: Sampling, penalty_name: str, *longest_names: str) -> dict[str, object]:
    """What is set of `sampling`; servers differ in what they call the penalty and the longest answer."""
    penalty = None if sampling.repetition_penalty == 1.0 else sampling.repetition_penalty
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        penalty_name: penalty,
        "seed": sampling.seed,
        **dict.fromkeys(longest_names, sampling.max_new_tokens),
    }
    return {name: value for name, value in values.items() if value is not None}


def as_is(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


def flattened(messages: Sequence[Message]) -> Sequence[Message]:
    """One user message that tells the whole conversation, for a server that reads only the last."""
    *past, question = folded(messages)
    if not past:
        return [question]
    said = (f"{'Me' if message.role == 'user' else 'You'}: {message.content.strip()}" for message in past)
    told = "\n\n".join(("Our conversation so far:", *said, "Answer what I say next:", question.content))
    return [Message("user", told)]


def server_words(value: Mapping[str, Any]) -> str | None:
    """The error that an object reports, in any of the forms that servers have; None where it reports none."""
    error = value.get("error")
    if not error and (value.get("object") == "error" or value.get("status") == "error"):
        error = value.get("message") or "an error without words"
    if isinstance(error, Mapping):
        parts = (error.get("message"), error.get("type"), error.get("code"), error.get("param"))
        error = " · ".join(words_of(part) for part in parts if part) or "an error without words"
    return words_of(error) if error else None


def words_of(value: object) -> str:
    """Any JSON as words for a message."""
    try:
        return str(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return "an error that cannot be shown"


def count(value: object) -> int | None:
    """A number of tokens; None for what cannot be one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST_TOKENS else None


def as_mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; {} for any other JSON."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def text_of(content: object) -> str:
    """Text, also where it comes as a list of parts; "" for any other JSON."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(as_mapping(part).get("text"), str))
    return content if isinstance(content, str) else ""


def thinking_of(said: Mapping[str, Any]) -> str:
    """What is thought before the answer; servers differ in what they call it, and some say it twice."""
    return next(filter(None, (text_of(said.get(name)) for name in _THINKING)), "")


def finish_of(value: object) -> str | None:
    """A server's word for why the answer ended; None where it has not ended."""
    return value if isinstance(value, str) and value else None
