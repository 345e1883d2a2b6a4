"""A server that answers over HTTP, behind the seam of `backends.base`."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from threading import Event as Cancel

from localgemma_cli.backends.http.answer_text import until_stop, well_formed, without
from localgemma_cli.backends.http.detect import Found, address, find
from localgemma_cli.backends.http.dialect import Ask, Piece, ServerError, server_words, words_of
from localgemma_cli.backends.http.endpoint import Endpoint
from localgemma_cli.backends.http.failures import (
    PassingError,
    Refusal,
    cut_off,
    is_overflow,
    overflow_error,
    overflows,
    quoted,
    refusal_error,
)
from localgemma_cli.backends.http.fallbacks import Manner, adapted
from localgemma_cli.backends.http.notices import Voice, wait_out
from localgemma_cli.backends.http.transport import Cancelled, Exchange
from localgemma_cli.conversation import FinishReason, Message, folded
from localgemma_cli.errors import EndpointError
from localgemma_cli.events import Delta, Event, Finished, RateMeter, Thinking, Usage
from localgemma_cli.redaction import SHORTEST_SECRET
from localgemma_cli.sampling import Sampling
from localgemma_cli.text import parse_json

_UNKNOWN = Usage(None, None, None)
_CUT_SHORT = ("length", "max_tokens", "max_length", "token_limit")
_AFTER_SECONDS = 5.0  # for the counts, once the answer is whole
_LONGEST_ANSWER = 4_000_000  # characters, more than any model writes
_PIECE_COST = 16  # of them: each piece takes memory of its own


class RemoteBackend:
    """One model on one server; `model` is the server's own name for it."""

    name = "remote"
    note: str | None = None

    def __init__(self, endpoint: Endpoint, found: Found, voice: Voice) -> None:
        self._endpoint, self._found, self._voice = endpoint, found, voice
        self._asked_for = endpoint.model or next(iter(found.models), None)
        self.model = self._asked_for or "default"
        self.context_length = found.context_length
        self.continues = found.continues
        self._manner = Manner()

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`; raises EndpointError before any delta, and ends with one after the first."""
        self._voice.open()
        if messages[-1].role == "assistant" and not messages[-1].content.strip():
            messages = messages[:-1]  # nothing of the answer has come yet
        answer = _Answer()
        error: EndpointError | None = None
        interrupted = False
        with closing(self._tried(messages, sampling, cancel)) as pieces:
            try:
                for piece in pieces:
                    answer.add(piece)
                    if piece.thinking:
                        yield Thinking(piece.thinking)
                    if piece.text:
                        yield Delta(piece.text)
            except Cancelled:
                interrupted = True
            except EndpointError as failure:
                error = self._judged(failure)
                if not answer.has_text and error is failure:
                    raise
                if not answer.has_text:
                    raise error from None  # a traceback would show the server's words as they came
                error = EndpointError(f"{error.message} The answer is broken off.", error.hint)
        yield answer.finished(interrupted, error)

    def count(self, messages: Sequence[Message]) -> int | None:
        return None

    def recognizes(self, answer: Message) -> bool:
        return True  # ids are never sent

    def prompt(self, messages: Sequence[Message]) -> str | None:
        return None

    def _judged(self, failure: EndpointError) -> EndpointError:
        """The failure in words that may be printed: a server's own can hold anything, also the key."""
        if not isinstance(failure, ServerError):
            return failure
        words = quoted(failure.words, self._endpoint.key)
        return EndpointError(f"{self._endpoint.root} failed: {words}.", failure.hint)

    def _tried(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Generator[Piece]:
        """The answer's pieces; what fails before the first is tried again, since nothing was said yet."""
        tries, began = 0, False
        while True:
            tries += 1
            try:
                for piece in self._pieces(messages, sampling, cancel):
                    began = began or bool(piece.text or piece.thinking)
                    yield piece
            except PassingError as error:
                if began:
                    raise
                wait_out(error, tries, self._voice, cancel)
            except ServerError as error:
                words = quoted(error.words, self._endpoint.key)
                if not began and is_overflow(words):
                    raise overflow_error(words) from None
                raise
            else:
                return

    def _pieces(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Piece]:
        dialect, finished, length = self._found.dialect, False, 0
        with closing(self._opened(messages, sampling, cancel)) as exchange:
            try:
                for piece in self._in_order(dialect.pieces(exchange.chunks())):
                    length += len(piece.text) + len(piece.thinking) + _PIECE_COST
                    if length > _LONGEST_ANSWER:
                        raise _endless(self._endpoint)
                    if piece.finish and not finished:
                        finished = True
                        exchange.allow(min(_AFTER_SECONDS, self._endpoint.timeout))
                    elif piece.text or piece.thinking:
                        exchange.allow(self._endpoint.timeout)
                    yield piece
            except EndpointError:
                if not finished:  # after the last word only counts are missing
                    raise
        if not finished:
            raise cut_off(self._endpoint.root)

    def _in_order(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Without what must not be shown: stop strings, halves of characters, the key."""
        pieces, key = well_formed(pieces), self._endpoint.key
        if key and len(key) >= SHORTEST_SECRET:
            pieces = without(pieces, key)
        return until_stop(pieces, self._found.dialect.stops)

    def _opened(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Exchange:
        """The exchange whose body is the answer, asked for in the manner that the server takes."""
        manner, words = self._manner, list[str]()
        uncapped = False
        while True:
            body = self._body(messages, sampling, manner, uncapped)
            exchange = self._sent(body, cancel)
            head = exchange.head()
            if head.ok and "html" not in head.headers.get("content-type", ""):
                self._manner = manner
                for word in words:
                    self._voice.say(word)
                return exchange
            refusal = Refusal(head.status, quoted(_reason(exchange.text()), self._endpoint.key), head.headers)
            exchange.close()
            if head.ok:
                raise EndpointError(f"{self._endpoint.root} answers with a web page.", "Check --endpoint.")
            if overflows(refusal) and not uncapped and sampling.max_new_tokens:
                uncapped = True  # the answer may be as long as there is room, as with a local model
                continue
            system = messages[0].role == "system"
            change = None if overflows(refusal) else adapted(manner, refusal, body, system=system)
            if change is None:
                known = quoted(", ".join(self._found.models[:5]), self._endpoint.key)
                raise refusal_error(refusal, self._endpoint, self._asked_for, known)
            manner = change[0]
            words.append(change[1])

    def _sent(self, body: Mapping[str, object], cancel: Cancel) -> Exchange:
        dialect = self._found.dialect
        return Exchange(self._endpoint, "POST", address(self._endpoint, dialect, dialect.path), body, cancel)

    def _body(
        self, messages: Sequence[Message], sampling: Sampling, manner: Manner, uncapped: bool
    ) -> dict[str, object]:
        shaped = self._found.dialect.shape(folded(messages) if manner.folds_system else messages)
        body = self._found.dialect.body(Ask(shaped, sampling, self._asked_for, self._found.penalty_name))
        left_out = manner.dropped | ({"max_tokens"} if uncapped else set())
        return {name: value for name, value in body.items() if name not in left_out}


class _Answer:
    """What has arrived of an answer: when, how many tokens by the server's count, and how it ended."""

    def __init__(self) -> None:
        self._meter = RateMeter()
        self.has_text = False  # thinking alone does not count
        self._finish: str | None = None
        self._usage = _UNKNOWN

    def add(self, piece: Piece) -> None:
        if piece.text or piece.thinking:
            self._meter.tick()
            self.has_text = self.has_text or bool(piece.text)
        self._finish = self._finish or piece.finish
        self._usage = piece.usage or self._usage

    def finished(self, interrupted: bool, error: EndpointError | None) -> Finished:
        reason: FinishReason = "length" if self._finish in _CUT_SHORT else "stop"
        if interrupted or error:
            reason = "interrupted" if interrupted else "error"
        timing = self._meter.timing(self._usage.completion_tokens)
        return Finished(reason, self._usage, timing, error=error)


def _reason(text: str) -> str:
    """The words of a refusal, out of the JSON around them."""
    try:
        value = parse_json(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    said = value.get("detail") or value.get("message")
    return server_words(value) or (words_of(said) if said else text)


def _endless(endpoint: Endpoint) -> EndpointError:
    return EndpointError(
        f"{endpoint.root} sent an answer that does not end.", "--max-new-tokens sets a limit."
    )


def connect(endpoint: Endpoint, say: Callable[[str], None], detail: Callable[[str], None]) -> RemoteBackend:
    """Ask the server what it is; raises EndpointError where it cannot be reached."""
    voice = Voice(say, detail)
    return RemoteBackend(endpoint, find(endpoint, voice, Cancel()), voice)
