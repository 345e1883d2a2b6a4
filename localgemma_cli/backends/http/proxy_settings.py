"""The proxy variables of the environment: which proxy a server is reached through, and invalid values."""

import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from localgemma_cli.backends.http.endpoint import Endpoint

_SCHEMES = ("http", "https", "socks5", "socks5h")


def proxy_of(endpoint: Endpoint) -> str | None:
    """The proxy for this server as `VARIABLE=PROXY`, without its password; None for a direct connection."""
    parts = urlsplit(endpoint.root)
    if endpoint.loopback or proxy_bypass(parts.hostname or ""):
        return None
    variable = _set_variable(parts.scheme) or _set_variable("all")
    if variable is None:
        return None
    return f"{variable}={os.environ[variable].rpartition('@')[2].removeprefix('http://')}"


def invalid_proxy() -> tuple[str, str] | None:
    """Problem and hint for the first proxy variable that cannot be used; None if all of them can.

    The HTTP client reads every variable, not only the one that this server needs.
    """
    variables = filter(None, map(_set_variable, ("http", "https", "all")))
    return next(filter(None, map(_problem, variables)), None)


def _problem(variable: str) -> tuple[str, str] | None:
    value = os.environ[variable]
    scheme = value.partition("://")[0].lower() if "://" in value else "http"
    if scheme not in _SCHEMES:
        return f"{variable} names a proxy of an unknown kind", "Start it with http://."
    if scheme.startswith("socks") and find_spec("socksio") is None:
        return f"{variable} names a SOCKS proxy, which needs the package socksio", "pip install socksio"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        if parts.hostname and parts.port != 0:
            return None
    except ValueError:
        pass
    return f"{variable} is not the address of a proxy", "Write it as http://HOST:PORT."


def _set_variable(name: str) -> str | None:
    """The name of the variable in use: the lower-case one takes precedence, as in the HTTP client."""
    return next((each for each in (f"{name}_proxy", f"{name.upper()}_PROXY") if os.environ.get(each)), None)
