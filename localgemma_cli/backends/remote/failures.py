"""What a server or the way to it can do wrong, as errors for people; nothing here can print the key."""

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

from localgemma_cli.backends.remote.endpoint import KEY_VARIABLE, Endpoint
from localgemma_cli.errors import ContextOverflowError, EndpointError, LocalGemmaError
from localgemma_cli.render.sanitize import one_line

_QUOTED = 300  # characters of a server's own words
_OVERFLOW = re.compile(
    r"context[ _-]?(length|size|window)|maximum .*\bcontext\b|max_model_len|"
    r"`?inputs`?( tokens)?.{0,30} must (be|have)|longer than the model",
    re.IGNORECASE,
)
_PASSING = {429: "is busy", 502: "is not reachable behind its proxy", 503: "is busy", 504: "did not answer"}


class PassingError(EndpointError):
    """One that may be over in a moment; `after` seconds where the server said so."""

    def __init__(self, message: str, hint: str, after: float | None = None) -> None:
        super().__init__(message, hint)
        self.after = after


@dataclass(frozen=True)
class Refusal:
    """An answer that is not 2xx: its status and the server's own words."""

    status: int
    words: str
    headers: Mapping[str, str]


def quoted(text: str, key: str | None) -> str:
    """A server's words for a message: on one line, not too long, without the key that it may repeat."""
    words = one_line(text.replace(key, "***") if key else text)
    return words if len(words) <= _QUOTED else words[:_QUOTED] + "…"


def transport_error(error: Exception, endpoint: Endpoint) -> EndpointError:
    """From what the HTTP client raised, by its cause: refused, unknown and TLS are one class there."""
    import httpx2

    where, causes = endpoint.root, list(_causes(error))
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        why = next(cause for cause in causes if isinstance(cause, ssl.SSLError))
        return EndpointError(
            f"{where} has no TLS that can be trusted: {one_line(why.reason or str(why))}.",
            "Check http or https; SSL_CERT_FILE names a certificate authority of your own.",
        )
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return EndpointError(f"There is no host {endpoint.host}.", "Check the name in --endpoint.")
    if isinstance(error, httpx2.ConnectTimeout):
        return EndpointError(
            f"{where} did not answer: no connection in 10 s.", "Check the address, and that the server runs."
        )
    if isinstance(error, httpx2.TimeoutException):
        return EndpointError(
            f"{where} sent nothing for {endpoint.timeout:g} s.",
            "Look at the server; --endpoint-timeout waits longer.",
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
        return PassingError(
            f"{where} cannot be reached{': ' + reasons[-1] if reasons else ''}.",
            "Start the server, or check --endpoint.",
        )
    return cut_off(where)


def cut_off(where: str) -> PassingError:
    return PassingError(
        f"{where} closed the connection before the answer was whole.", "Look at the server's log; ask again."
    )


def refusal_error(refusal: Refusal, endpoint: Endpoint, model: str | None, known: str) -> LocalGemmaError:
    """`known` names the models that the server lists, "" where it lists none."""
    where, said = endpoint.root, f" (HTTP {refusal.status}{': ' + refusal.words if refusal.words else ''})"
    if overflows(refusal):
        return overflow_error(refusal.words)
    if refusal.status in (401, 403):
        what = f"the key in {KEY_VARIABLE}" if endpoint.key else "a request without a key"
        return EndpointError(f"{where} refuses {what}{said}.", f"Put the server's key into {KEY_VARIABLE}.")
    if refusal.status == 404:
        has = f"It has: {known}." if known else "Check --endpoint, and the name after -m."
        return EndpointError(f"{where} knows no {f'model {model}' if model else 'chat'}{said}.", has)
    if refusal.status in _PASSING:
        after = retry_after(refusal.headers)
        return PassingError(f"{where} {_PASSING[refusal.status]}{said}.", "Try again later.", after)
    if 300 <= refusal.status < 400:
        target = one_line(refusal.headers.get("location", "elsewhere"))
        return EndpointError(f"{where} sends to {target}{said}.", "Give that address as --endpoint.")
    if refusal.status >= 500:
        return EndpointError(f"{where} failed{said}.", "Look at the server's log.")
    return EndpointError(f"{where} refuses the request{said}.", "Check -m and the sampling options.")


def overflows(refusal: Refusal) -> bool:
    return refusal.status in (400, 413, 422, 500) and is_overflow(refusal.words)


def is_overflow(words: str) -> bool:
    return bool(_OVERFLOW.search(words))


def overflow_error(words: str) -> ContextOverflowError:
    return ContextOverflowError(
        f"The conversation does not fit in the server's context: {words}",
        "Shorten the prompt, or start anew; --on-overflow trim drops the oldest turns of a chat.",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
