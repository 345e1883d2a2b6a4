"""Errors of servers and of the connection to them, as messages for the user; none can contain the API key."""

import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

from localgemma_cli.backends.http.endpoint import KEY_VARIABLE, Endpoint
from localgemma_cli.backends.http.proxy_settings import invalid_proxy, proxy_of
from localgemma_cli.errors import ContextOverflowError, EndpointError, LocalGemmaError
from localgemma_cli.redaction import redact
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import repair_surrogates

_QUOTED_LENGTH = 300  # characters of a server's text in a message
_READ_LENGTH = 2**16  # characters that are searched for the key
_OVERFLOW = re.compile(
    r"context[ _-]?(length|size|window)|maximum .*\bcontext\b|max_model_len|"
    r"`?inputs`?( tokens)?.{0,30} must (be|have)|longer than the model",
    re.IGNORECASE,
)
_DISCONNECTED = re.compile("server disconnected|peer closed", re.IGNORECASE)  # the HTTP client's own messages
_TRANSIENT = {429: "is busy", 502: "is not reachable behind its proxy", 503: "is busy", 504: "did not answer"}


class TransientError(EndpointError):
    """An error that may pass; `retry_after` is the server's own wait in seconds, if it sent one."""

    def __init__(self, message: str, hint: str, retry_after: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Refusal:
    """A response whose status is not 2xx; `text` is the server's own message, safe to display."""

    status: int
    text: str
    headers: Mapping[str, str]


def quote(text: str, key: str | None) -> str:
    """A server's text for a message: one line, at most 300 characters, without the API key."""
    line = one_line(repair_surrogates(redact(text[:_READ_LENGTH], key)))
    return line if len(line) <= _QUOTED_LENGTH else line[:_QUOTED_LENGTH] + "…"


def transport_error(error: Exception, endpoint: Endpoint, *, sent: bool) -> EndpointError:
    """The error for an exception of the HTTP client; `sent`: whether the whole request had been sent.

    Its causes go into a note, for --verbose. They are quoted, since they may contain the key.
    """
    failure = _response_error(error, endpoint) if sent else _connection_error(error, endpoint)
    causes = (f"{type(cause).__name__}: {quote(str(cause), endpoint.key)}" for cause in _causes(error))
    failure.add_note("\n".join(("Caused by:", *causes)))
    return failure


def _describe(endpoint: Endpoint) -> str:
    proxy = proxy_of(endpoint)
    return f"{endpoint.root} (through the proxy of {quote(proxy, endpoint.key)})" if proxy else endpoint.root


def _connection_error(error: Exception, endpoint: Endpoint) -> EndpointError:
    """The error for a request that was not sent: no client, no connection, or no TLS."""
    import httpx2

    where, causes = _describe(endpoint), list(_causes(error))
    has_client = isinstance(error, httpx2.TransportError)
    if (not has_client or where != endpoint.root) and (problem := invalid_proxy()):
        return EndpointError(
            f"Cannot connect to {endpoint.root}: {problem[0]}.", f"{problem[1]} Or unset it."
        )
    if not has_client and any(isinstance(cause, OSError) for cause in causes):  # an SSLError is one, too
        return EndpointError(
            f"Cannot read the certificates for HTTPS: {quote(str(error), endpoint.key)}.",
            "Correct or unset SSL_CERT_FILE and SSL_CERT_DIR.",
        )
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return _tls_error(cause, where, endpoint.key)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        if where != endpoint.root:
            return EndpointError(f"Cannot connect to {where}: proxy not found.", "Check the variable.")
        return EndpointError(f"Host not found: {endpoint.host}.", "Check the name in --endpoint.")
    if isinstance(error, httpx2.TimeoutException):
        return EndpointError(
            f"{where} did not answer: no connection in 10 s.",
            "Check the address, and that the server is running.",
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return _refused_connection(error, where, endpoint.key, causes)
    why = f"{type(error).__name__}: {quote(str(error), endpoint.key)}"
    return EndpointError(f"Cannot connect to {where}: {why}.", "Check --endpoint and the proxy variables.")


def _tls_error(cause: ssl.SSLError, where: str, key: str | None) -> EndpointError:
    why = getattr(cause, "verify_message", "") or cause.reason or str(cause)
    return EndpointError(
        f"{where} failed the TLS check: {quote(why, key).rstrip('.')}.",
        "Check http or https; SSL_CERT_FILE adds your own certificate authority.",
    )


def _refused_connection(
    error: Exception, where: str, key: str | None, causes: Sequence[BaseException]
) -> TransientError:
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    reason = reasons[-1] if reasons else quote(str(error), key)
    return TransientError(
        f"Cannot connect to {where}{': ' + reason if reason else ''}.",
        "Start the server, or check --endpoint.",
    )


def _response_error(error: Exception, endpoint: Endpoint) -> EndpointError:
    """The error for a response that is missing or incomplete, after the request was sent."""
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        return no_data_error(endpoint)
    if isinstance(error, httpx2.ProtocolError) and not _DISCONNECTED.match(str(error)):
        return EndpointError(
            f"{_describe(endpoint)} did not answer with HTTP.",
            "Check the address and the port of --endpoint.",
        )
    return cut_off_error(_describe(endpoint))


def no_data_error(endpoint: Endpoint) -> EndpointError:
    return EndpointError(
        f"{_describe(endpoint)} sent nothing for {endpoint.timeout:g} s.",
        "Check the server; a larger --endpoint-timeout waits longer.",
    )


def no_answer_error(endpoint: Endpoint) -> EndpointError:
    """The error for a server that sends data, but no text of an answer."""
    return EndpointError(
        f"{_describe(endpoint)} keeps the connection busy without answering.",
        "Check the server's log; a larger --endpoint-timeout waits longer.",
    )


def cut_off_error(where: str) -> TransientError:
    return TransientError(
        f"{where} closed the connection before the end of the answer.", "Check the server's log; ask again."
    )


def refusal_error(refusal: Refusal, endpoint: Endpoint, model: str | None, known: str) -> LocalGemmaError:
    """The error for a refusal; `known` lists the server's models, "" if it lists none."""
    where, status = endpoint.root, refusal.status
    details = f" (HTTP {status}{': ' + refusal.text if refusal.text else ''})"
    if is_overflow_refusal(refusal):
        return overflow_error(refusal.text)
    if status in (401, 403):
        what = f"rejected the key in {KEY_VARIABLE}" if endpoint.key else "requires an API key"
        return EndpointError(f"{where} {what}{details}.", f"Set {KEY_VARIABLE} to the server's key.")
    if status == 404:
        what = f"has no model {model}" if model else "has no chat API at this address"
        hint = f"Available: {known}." if known else "Check --endpoint, and the name after -m."
        return EndpointError(f"{where} {what}{details}.", hint)
    if status in _TRANSIENT:
        wait = retry_after(refusal.headers)
        return TransientError(f"{where} {_TRANSIENT[status]}{details}.", "Try again later.", wait)
    if 300 <= status < 400:
        target = quote(refusal.headers.get("location", "another address"), endpoint.key)
        return EndpointError(f"{where} redirects to {target}{details}.", "Use that address for --endpoint.")
    if status >= 500:
        return EndpointError(f"{where} failed{details}.", "Check the server's log.")
    return EndpointError(f"{where} rejected the request{details}.", "Check -m and the sampling options.")


def is_overflow_refusal(refusal: Refusal) -> bool:
    return refusal.status in (400, 413, 422, 500) and is_overflow_text(refusal.text)


def is_overflow_text(text: str) -> bool:
    return bool(_OVERFLOW.search(text))


def overflow_error(text: str) -> ContextOverflowError:
    return ContextOverflowError(
        f"The conversation does not fit in the server's context: {text}",
        "Shorten the prompt.",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from either form of the Retry-After header (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError, OSError):  # not a date, or out of range
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
