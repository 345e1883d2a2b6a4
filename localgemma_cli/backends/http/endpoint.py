"""A server's address, dialect, model, timeout and API key: checked before anything is sent."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from localgemma_cli.errors import UsageError
from localgemma_cli.sanitize import one_line

KEY_VARIABLE = "LOCALGEMMA_API_KEY"
DIALECT_NAMES = ("auto", "openai", "rkllama", "rkllama-api", "rkllm", "rkllm-1.2")

_DIALECT_BY_PATH = {  # a URL may end with the path of its dialect
    "/chat/completions": "auto",
    "/api/chat": "rkllama-api",
    "/rkllm_chat": "rkllm-1.2",
}
_LONGEST_TIMEOUT = 86_400  # a day
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


@dataclass(frozen=True)
class Endpoint:
    """A server to chat with.

    `root` is its URL without the path of any dialect, `base` that of its OpenAI API, which ends in /v1.
    `timeout` is in seconds.
    """

    root: str
    base: str
    dialect: str = "auto"
    model: str | None = None
    timeout: float = 120.0
    key: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return urlsplit(self.root).netloc

    @property
    def loopback(self) -> bool:
        return bool(_LOOPBACK.fullmatch(urlsplit(self.root).hostname or ""))


def parse_endpoint(
    url: str,
    *,
    dialect: str = "auto",
    model: str | None = None,
    timeout: float = 120.0,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The server at `url`, with or without /v1. Raises UsageError for an invalid URL, dialect or timeout."""
    if dialect not in DIALECT_NAMES:
        raise UsageError(
            f"--endpoint-dialect cannot be {dialect!r}.", f"Choose one of: {', '.join(DIALECT_NAMES)}."
        )
    if not 0 < timeout <= _LONGEST_TIMEOUT:  # also false for nan
        raise UsageError(
            f"--endpoint-timeout must be above 0 and at most {_LONGEST_TIMEOUT} seconds (got {timeout:g}).",
            "Without it, the timeout is 120 seconds.",
        )
    parts = _parse_url(url.strip())
    whole = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    for path, named in _DIALECT_BY_PATH.items():
        if whole.endswith(path):
            whole = whole.removesuffix(path)
            base = whole if path == "/chat/completions" else f"{whole}/v1"
            chosen = named if dialect == "auto" else dialect
            return Endpoint(whole.removesuffix("/v1"), base, chosen, model, timeout, _read_key(environ))
    root = whole.removesuffix("/v1")
    return Endpoint(root, f"{root}/v1", dialect, model, timeout, _read_key(environ))


def _parse_url(url: str) -> SplitResult:
    example = "Write it as http://HOST:PORT or https://HOST."
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError if it is not a number
        parts.netloc.encode("ascii")
    except ValueError:
        raise UsageError("--endpoint is not a URL.", example) from None
    if parts.username is not None:  # it would appear in messages and in the shell's history
        raise UsageError(
            "--endpoint contains a user name or a password.", f"Set {KEY_VARIABLE} to the server's key."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\x00-\x1f]", url):
        raise UsageError(f"--endpoint {one_line(url)!r} is not the URL of a server.", example)
    if parts.query or parts.fragment:
        raise UsageError("--endpoint cannot contain ? or #.", example)
    return parts


def _read_key(environ: Mapping[str, str]) -> str | None:
    key = environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"{KEY_VARIABLE} contains characters that are not allowed in a key.", "Copy the key again."
        )
    return key or None
