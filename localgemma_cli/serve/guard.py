"""What a request must show before it is read: a key, or that no web page sends it.

Any web page that a user visits can send requests to this machine. The browser then names the page in
`Origin`, and a page that had its own name resolve to this machine (DNS rebinding) shows that name in `Host`.
"""

import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from localgemma_cli.documents import format_value
from localgemma_cli.serve.api_error import ApiError

_BEARER = "bearer "
_PUBLIC = "/health"  # needs no key, because load balancers and container managers have none


def check_request(scope: Scope, key: str | None) -> None:
    """Raise ApiError for a request that must not be answered."""
    headers = Headers(scope=scope)
    _check_origin(headers)
    if key is None:
        if scope["server"] and scope["server"][1] is not None:  # a browser cannot use a Unix socket
            _check_host(headers)
    elif scope["path"] != _PUBLIC:
        _check_key(headers, key)
    if scope["method"] == "POST":
        _check_type(headers)


def _check_origin(headers: Mapping[str, str]) -> None:
    origin = headers.get("origin")
    own = f"http://{headers.get('host')}"
    if (origin is not None and origin != own) or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ApiError(403, "Requests of web pages are not allowed.", code="origin_not_allowed")


def _check_host(headers: Mapping[str, str]) -> None:
    host = headers.get("host")
    if host is not None and not is_local_name(host):
        raise ApiError(
            403,
            "The Host header does not name this machine. Use 127.0.0.1 or localhost, or start the server"
            " with a key.",
            code="host_not_allowed",
        )


def is_local_name(host: str) -> bool:
    """Whether a Host header, with or without a port, names this machine itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _check_key(headers: Mapping[str, str], key: str) -> None:
    given = headers.get("authorization", "")
    shown = given[len(_BEARER) :].strip() if given.lower().startswith(_BEARER) else ""
    if not hmac.compare_digest(shown.encode("utf-8", "replace"), key.encode()):  # in constant time
        raise ApiError(
            401,
            "The API key is missing or wrong. Send it as: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _check_type(headers: Mapping[str, str]) -> None:
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"Content-Type must be application/json (got {format_value(kind)}). With curl, add:"
            " -H 'Content-Type: application/json'",
            code="invalid_content_type",
        )
