"""A `Backend` that answers through an HTTP server."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from threading import Event as Cancel

from localgemma_cli.backends.http.detect import ServerInfo, detect_server, dialect_url
from localgemma_cli.backends.http.dialect import ChatRequest, Piece, ServerError, error_text, json_text
from localgemma_cli.backends.http.endpoint import Endpoint
from localgemma_cli.backends.http.fallbacks import Compatibility, fall_back
from localgemma_cli.backends.http.notices import Notices, wait_before_retry
from localgemma_cli.backends.http.server_errors import (
    Refusal,
    TransientError,
    cut_off_error,
    is_overflow_refusal,
    is_overflow_text,
    overflow_error,
    quote,
    refusal_error,
)
from localgemma_cli.backends.http.structured import is_wrapped, unwrap
from localgemma_cli.backends.http.text_filters import cut_at_stop, join_surrogates, mask_secret
from localgemma_cli.backends.http.transport import Exchange, ExchangeCancelled
from localgemma_cli.conversation import FinishReason, Message, fold_system
from localgemma_cli.errors import EndpointError, UsageError
from localgemma_cli.events import Delta, Event, Finished, RateMeter, Thinking, TokenLogprob, Usage
from localgemma_cli.redaction import SHORTEST_SECRET
from localgemma_cli.sampling import Sampling
from localgemma_cli.text import parse_json

_UNKNOWN = Usage(None, None, None)
_LENGTH_REASONS = ("length", "max_tokens", "max_length", "token_limit")
_USAGE_SECONDS = 5.0  # wait for the token counts, once the answer is complete
_LONGEST_ANSWER = 4_000_000  # characters, more than any model writes
_PIECE_COST = 16  # characters: what the memory of one piece amounts to
_ENTRY_COST = 4  # characters, for each log-probability of a token


class HttpBackend:
    """One model on one server; `model` is the server's name for it."""

    name = "remote"  # as in the JSON output
    note: str | None = None

    def __init__(self, endpoint: Endpoint, server: ServerInfo, notices: Notices) -> None:
        self._endpoint, self._server, self._notices = endpoint, server, notices
        self._requested_model = endpoint.model or next(iter(server.models), None)
        self.model = self._requested_model or "default"
        self.context_length = server.context_length
        self.continues = server.continues
        self._compatibility = Compatibility()

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`. Raises EndpointError before the first delta; later errors end the answer."""
        self._notices.open()
        if messages[-1].role == "assistant" and not messages[-1].content.strip():
            messages = messages[:-1]  # an answer without text yet: there is nothing to continue
        answer = _Answer()
        held: list[str] | None = [] if is_wrapped(sampling.constraint, self._server.owner) else None
        error: EndpointError | None = None
        interrupted = False
        with closing(self._pieces_with_retries(messages, sampling, cancel)) as pieces:
            try:
                for piece in pieces:
                    answer.add(piece)
                    if piece.thinking:
                        yield Thinking(piece.thinking)
                    if piece.text and held is not None:
                        held.append(piece.text)
                    elif piece.text:
                        yield Delta(piece.text)
            except ExchangeCancelled:
                interrupted = True
            except EndpointError as failure:
                error = self._displayable(failure)
                if not answer.has_text and error is failure:
                    raise
                if not answer.has_text:
                    raise error from None  # a traceback would show the server's text unchecked
                error = EndpointError(f"{error.message} The answer is incomplete.", error.hint)
        if held:
            yield Delta(unwrap("".join(held)))
        finished = answer.finished(interrupted, error, self._shown_logprobs(answer.logprobs))
        if sampling.logprobs is not None and finished.logprobs is None:
            self._notices.say("[server reports no log-probabilities]")
        yield finished

    def count(self, messages: Sequence[Message]) -> int | None:
        return None

    def recognizes(self, answer: Message) -> bool:
        return True  # token ids are never sent

    def prompt(self, messages: Sequence[Message]) -> str | None:
        return None

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        raise UsageError(
            "A server does not report the probabilities of given answers.",
            "Use a model on this machine: remove --endpoint, or use --endpoint none.",
        )

    def _shown_logprobs(self, logprobs: Sequence[TokenLogprob]) -> tuple[TokenLogprob, ...] | None:
        """None without any, and where their text contains the API key."""
        key, texts = self._endpoint.key, ["".join(each.token for each in logprobs)]
        texts += [other.token for each in logprobs for other in each.top_logprobs]
        if key and len(key) >= SHORTEST_SECRET and any(key in text for text in texts):
            return None
        return tuple(logprobs) or None

    def _displayable(self, failure: EndpointError) -> EndpointError:
        """The failure as it may be shown: a server's own text can contain anything, also the API key."""
        if not isinstance(failure, ServerError):
            return failure
        text = quote(failure.text, self._endpoint.key)
        return EndpointError(f"{self._endpoint.root} failed: {text}.", failure.hint)

    def _pieces_with_retries(
        self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel
    ) -> Generator[Piece]:
        """The pieces of the answer; a transient error before the first piece is retried."""
        attempts, started = 0, False
        while True:
            attempts += 1
            try:
                for piece in self._pieces(messages, sampling, cancel):
                    started = started or bool(piece.text or piece.thinking)
                    yield piece
            except TransientError as error:
                if started:
                    raise
                wait_before_retry(error, attempts, self._notices, cancel)
            except ServerError as error:
                text = quote(error.text, self._endpoint.key)
                if not started and is_overflow_text(text):
                    raise overflow_error(text) from None
                raise
            else:
                return

    def _pieces(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Piece]:
        dialect, finished, length = self._server.dialect, False, 0
        with closing(self._open_answer(messages, sampling, cancel)) as exchange:
            try:
                for piece in self._filtered(dialect.pieces(exchange.chunks())):
                    entries = sum(1 + len(each.top_logprobs) for each in piece.logprobs)
                    length += len(piece.text) + len(piece.thinking) + _PIECE_COST + _ENTRY_COST * entries
                    if length > _LONGEST_ANSWER:
                        raise EndpointError(
                            f"{self._endpoint.root} sent an answer without an end.",
                            "Set a limit with --max-new-tokens.",
                        )
                    if piece.finish and not finished:
                        finished = True
                        exchange.allow(min(_USAGE_SECONDS, self._endpoint.timeout))
                    elif piece.text or piece.thinking:
                        exchange.allow(self._endpoint.timeout)
                    yield piece
            except EndpointError:
                if not finished:  # after the finish reason only the token counts are missing
                    raise
        if not finished:
            raise cut_off_error(self._endpoint.root)

    def _filtered(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces as they may be shown: without stop strings, lone surrogates and the API key."""
        pieces, key = join_surrogates(pieces), self._endpoint.key
        if key and len(key) >= SHORTEST_SECRET:
            pieces = mask_secret(pieces, key)
        return cut_at_stop(pieces, self._server.dialect.stops)

    def _open_answer(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Exchange:
        """Send the request until the server accepts it, with fallbacks for what it does not support."""
        known, notices = self._compatibility, list[str]()
        unlimited = False
        while True:
            body = self._body(messages, sampling, known, unlimited)
            exchange = self._send_request(body, cancel)
            head = exchange.head()
            if head.ok and "html" not in head.headers.get("content-type", ""):
                self._compatibility = known
                for notice in notices:
                    self._notices.say(notice)
                return exchange
            refusal = Refusal(
                head.status, quote(_refusal_text(exchange.text()), self._endpoint.key), head.headers
            )
            exchange.close()
            if head.ok:
                raise EndpointError(f"{self._endpoint.root} answered with a web page.", "Check --endpoint.")
            overflows = is_overflow_refusal(refusal)
            if overflows and not unlimited and sampling.max_new_tokens:
                unlimited = True  # use whatever room the context has, as a local model does
                continue
            fallback = None
            if not overflows:
                fallback = fall_back(known, refusal, body, has_system=messages[0].role == "system")
            if fallback is None:
                models = quote(", ".join(self._server.models[:5]), self._endpoint.key)
                raise refusal_error(refusal, self._endpoint, self._requested_model, models)
            known, notice = fallback
            notices.append(notice)

    def _send_request(self, body: Mapping[str, object], cancel: Cancel) -> Exchange:
        dialect = self._server.dialect
        return Exchange(
            self._endpoint, "POST", dialect_url(self._endpoint, dialect, dialect.path), body, cancel
        )

    def _body(
        self, messages: Sequence[Message], sampling: Sampling, known: Compatibility, unlimited: bool
    ) -> dict[str, object]:
        shaped = self._server.dialect.shape(fold_system(messages) if known.folds_system else messages)
        request = ChatRequest(
            shaped, sampling, self._requested_model, self._server.penalty_name, self._server.owner
        )
        omitted = known.omitted | ({"max_tokens"} if unlimited else set())
        fields = self._server.dialect.body(request)
        return {name: value for name, value in fields.items() if name not in omitted}


class _Answer:
    """What has arrived of an answer: its times, the server's token counts, and its finish reason."""

    def __init__(self) -> None:
        self._meter = RateMeter()
        self.has_text = False  # thinking alone does not count
        self._finish: str | None = None
        self._usage = _UNKNOWN
        self.logprobs: list[TokenLogprob] = []

    def add(self, piece: Piece) -> None:
        if piece.text or piece.thinking:
            self._meter.tick()
            self.has_text = self.has_text or bool(piece.text)
        self._finish = self._finish or piece.finish
        self._usage = piece.usage or self._usage
        self.logprobs += piece.logprobs

    def finished(
        self, interrupted: bool, error: EndpointError | None, logprobs: tuple[TokenLogprob, ...] | None
    ) -> Finished:
        reason: FinishReason = "length" if self._finish in _LENGTH_REASONS else "stop"
        if interrupted or error:
            reason = "interrupted" if interrupted else "error"
        timing = self._meter.timing(self._usage.completion_tokens)
        return Finished(reason, self._usage, timing, error=error, logprobs=logprobs)


def _refusal_text(body: str) -> str:
    """The server's message from the body of a refusal: out of its JSON, or the body itself."""
    try:
        value = parse_json(body)
    except ValueError:
        return body
    if not isinstance(value, dict):
        return body
    detail = value.get("detail") or value.get("message")
    return error_text(value) or (json_text(detail) if detail else body)


def connect(endpoint: Endpoint, say: Callable[[str], None], detail: Callable[[str], None]) -> HttpBackend:
    """Detect the server's dialect and models. Raises EndpointError if it cannot be reached."""
    notices = Notices(say, detail)
    return HttpBackend(endpoint, detect_server(endpoint, notices, Cancel()), notices)
