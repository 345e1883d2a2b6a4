"""What a server or the way to it can do wrong, as errors for people; nothing here can print the key."""

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

from localgemma_cli.backends.http.endpoint import KEY_VARIABLE, Endpoint
from localgemma_cli.backends.http.proxies import proxy_before, wrong_proxy
from localgemma_cli.errors import ContextOverflowError, EndpointError, LocalGemmaError
from localgemma_cli.redaction import redacted
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import repair_surrogates

_QUOTED = 300  # characters of a server's own words
_READ = 2**16  # characters that are looked at for them
_OVERFLOW = re.compile(
    r"context[ _-]?(length|size|window)|maximum .*\bcontext\b|max_model_len|"
    r"`?inputs`?( tokens)?.{0,30} must (be|have)|longer than the model",
    re.IGNORECASE,
)
_HUNG_UP = re.compile("server disconnected|peer closed", re.IGNORECASE)  # in the client's own words
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
    words = one_line(repair_surrogates(redacted(text[:_READ], key)))
    return words if len(words) <= _QUOTED else words[:_QUOTED] + "…"


def transport_error(error: Exception, endpoint: Endpoint, *, sent: bool) -> EndpointError:
    """From what the HTTP client raised, by its cause; `sent` is whether the request was on its way.

    For --verbose the causes are told in a note: as they are, they could hold a server's words and the key.
    """
    failure = _broken(error, endpoint) if sent else _not_begun(error, endpoint)
    told = (f"{type(cause).__name__}: {quoted(str(cause), endpoint.key)}" for cause in _causes(error))
    failure.add_note("\n".join(("Caused by:", *told)))
    return failure


def _where(endpoint: Endpoint) -> str:
    proxy = proxy_before(endpoint)
    return f"{endpoint.root} (through the proxy of {quoted(proxy, endpoint.key)})" if proxy else endpoint.root


def _not_begun(error: Exception, endpoint: Endpoint) -> EndpointError:
    """No request was sent."""
    import httpx2

    where, causes = _where(endpoint), list(_causes(error))
    connecting = isinstance(error, httpx2.TransportError)  # or else the client could not be made
    if (not connecting or where != endpoint.root) and (wrong := wrong_proxy()):
        return EndpointError(f"{endpoint.root} cannot be asked: {wrong[0]}.", f"{wrong[1]} Or unset it.")
    if not connecting and any(isinstance(cause, OSError) for cause in causes):  # an SSLError is one, too
        return EndpointError(
            f"The certificates that HTTPS needs cannot be read: {quoted(str(error), endpoint.key)}.",
            "Correct or unset SSL_CERT_FILE and SSL_CERT_DIR.",
        )
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            why = getattr(cause, "verify_message", "") or cause.reason or str(cause)
            return EndpointError(
                f"{where} has no TLS that can be trusted: {quoted(why, endpoint.key).rstrip('.')}.",
                "Check http or https; SSL_CERT_FILE names a certificate authority of your own.",
            )
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        if where != endpoint.root:
            return EndpointError(f"{where} cannot be reached: there is no such proxy.", "Check the variable.")
        return EndpointError(f"There is no host {endpoint.host}.", "Check the name in --endpoint.")
    if isinstance(error, httpx2.TimeoutException):
        return EndpointError(
            f"{where} did not answer: no connection in 10 s.", "Check the address, and that the server runs."
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
        said = reasons[-1] if reasons else quoted(str(error), endpoint.key)
        return PassingError(
            f"{where} cannot be reached{': ' + said if said else ''}.",
            "Start the server, or check --endpoint.",
        )
    why = f"{type(error).__name__}: {quoted(str(error), endpoint.key)}"
    return EndpointError(f"{where} cannot be asked: {why}.", "Check --endpoint and the proxy variables.")


def _broken(error: Exception, endpoint: Endpoint) -> EndpointError:
    """The request was sent, and what came back is not whole."""
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        return silent(endpoint)
    if isinstance(error, httpx2.ProtocolError) and not _HUNG_UP.match(str(error)):
        return EndpointError(
            f"{_where(endpoint)} sent what is not HTTP.", "Check the address and the port of --endpoint."
        )
    return cut_off(_where(endpoint))


def silent(endpoint: Endpoint) -> EndpointError:
    return EndpointError(
        f"{_where(endpoint)} sent nothing for {endpoint.timeout:g} s.",
        "Look at the server; --endpoint-timeout waits longer.",
    )


def stalling(endpoint: Endpoint) -> EndpointError:
    """Bytes come, and no answer."""
    return EndpointError(
        f"{_where(endpoint)} keeps the connection busy without answering.",
        "Look at the server's log; --endpoint-timeout waits longer.",
    )


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
        target = quoted(refusal.headers.get("location", "elsewhere"), endpoint.key)
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
        "Shorten the prompt.",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError, OSError):  # no date, or one that no clock shows
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
