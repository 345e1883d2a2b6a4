"""Which proxy stands before a server, and what can be wrong with the variables that name it."""

import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from localgemma_cli.backends.http.endpoint import Endpoint

_SCHEMES = ("http", "https", "socks5", "socks5h")


def proxy_before(endpoint: Endpoint) -> str | None:
    """The variable that names the proxy before this server, and the proxy without its password."""
    parts = urlsplit(endpoint.root)
    if endpoint.loopback or proxy_bypass(parts.hostname or ""):
        return None
    variable = _first_set(parts.scheme) or _first_set("all")
    if variable is None:
        return None
    return f"{variable}={os.environ[variable].rpartition('@')[2].removeprefix('http://')}"


def wrong_proxy() -> tuple[str, str] | None:
    """(what is wrong with the first proxy variable that cannot be used, what to do); None where all can.

    The HTTP client reads all of them, whichever the server needs.
    """
    for name in ("http", "https", "all"):
        variable = _first_set(name)
        if variable is None:
            continue
        value = os.environ[variable]
        scheme = value.partition("://")[0].lower() if "://" in value else "http"
        if scheme not in _SCHEMES:
            return f"{variable} names a proxy of an unknown kind", "It must begin with http://."
        if scheme.startswith("socks") and find_spec("socksio") is None:
            return f"{variable} names a SOCKS proxy, which needs the package socksio", "pip install socksio"
        try:
            usable = urlsplit(value if "://" in value else f"http://{value}")
            if usable.hostname and usable.port != 0:
                continue
        except ValueError:
            pass
        return f"{variable} is not the address of a proxy", "It must look like http://HOST:PORT."
    return None


def _first_set(name: str) -> str | None:
    """The client's own order: the variable in small letters counts first."""
    return next((each for each in (f"{name}_proxy", f"{name.upper()}_PROXY") if os.environ.get(each)), None)
