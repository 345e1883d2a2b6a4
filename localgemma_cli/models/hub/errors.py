"""Errors of the hub client, its HTTP library and the disk, as the program's own errors with a hint."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)

from localgemma_cli.errors import (
    AccessError,
    DiskSpaceError,
    LocalGemmaError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from localgemma_cli.models.hub.cache import Repo
from localgemma_cli.units import format_bytes

# httpx or httpx2, as the client's version has it: its root error is the first base of the client's own.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]

_TRY_DEMO = "or try --model demo, which needs no download"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def quiet_client() -> Iterator[None]:
    """Suppress the client's log lines on stderr."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def translate_errors(repo: Repo) -> Iterator[None]:
    """Turn what the client, its HTTP library or the disk raise into our own errors."""
    try:
        yield
    except (LocalGemmaError, BrokenPipeError):
        raise  # a broken pipe belongs to the reader of the progress output
    except HfHubHTTPError as error:
        raise _refused(error, repo) from error
    except HTTP_ERROR as error:
        raise NetworkError(
            f"The hub cannot be reached: {quote_text(error, repo) or type(error).__name__}.",
            f"Check the network connection and try again, {_TRY_DEMO}.",
        ) from error
    except OSError as error:
        raise _not_written(error, repo) from error


def quote_text(text: object, repo: Repo) -> str:
    """Text from outside, made safe for a message: one line, no control characters, no token."""
    shown = str(text).replace(repo.token, "***") if repo.token else str(text)
    return " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:200].rstrip(".")


def _refused(error: HfHubHTTPError, repo: Repo) -> LocalGemmaError:
    """The error for an HTTP status; 401 can also mean a missing model, and 403 has several causes."""
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"{repo.model_id} has no revision {quote_text(repr(repo.revision), repo)}.",
            "Remove --revision, or use a branch, a tag or a full commit of that model.",
        )
    if status == 401:
        return _unauthorized(error, repo)
    if isinstance(error, RemoteEntryNotFoundError):
        return NotFoundError(
            f"{repo.model_id} lists a file that is missing on the hub.",
            "Try again, or use another --revision.",
        )
    if isinstance(error, DisabledRepoError):
        return NotFoundError(f"The hub has disabled {repo.model_id}.", "Pick another model.")
    if status == 403:
        return _forbidden(error, repo)
    if status == 404:
        return no_such_model(repo)
    if status == 429:
        return NetworkError(
            "The hub limits the rate of requests.", "Wait a few minutes, then run the command again."
        )
    said = quote_text(error.server_message or "", repo)
    return NetworkError(
        f"The hub answered with HTTP {status}{f': {said}' if said else ''}.", f"Try again later, {_TRY_DEMO}."
    )


def _unauthorized(error: HfHubHTTPError, repo: Repo) -> LocalGemmaError:
    if repo.token:
        return AccessError(
            "The hub rejects the Hugging Face token: it is wrong, expired or revoked.",
            "Run `hf auth login` again, or correct or unset HF_TOKEN.",
        )
    if isinstance(error, GatedRepoError) or repo.gated:
        return needs_token(repo)
    return no_such_model(repo)


def _forbidden(error: HfHubHTTPError, repo: Repo) -> LocalGemmaError:
    """All of these answers have the same header; only their text differs."""
    said, page = quote_text(error.server_message or "", repo), _page(repo)
    if "awaiting" in said:
        return AccessError(
            f"Your request for access to {repo.model_id} is still pending.",
            f"Wait until {page} shows that access was granted, {_TRY_DEMO}.",
        )
    if "fine-grained" in said:
        return AccessError(
            f"Your token has no permission to read gated models such as {repo.model_id}.",
            "Allow it at https://huggingface.co/settings/tokens: access to public gated repositories.",
        )
    if isinstance(error, GatedRepoError) or repo.gated:
        return AccessError(
            f"Your account has no access to {repo.model_id}: its licence has not been accepted.",
            f"Accept it at {page} with the account of this token, {_TRY_DEMO}.",
        )
    return AccessError(
        f"The hub refuses {repo.model_id}{f': {said}' if said else ''}.", f"See {page}, {_TRY_DEMO}."
    )


def _not_written(error: OSError, repo: Repo) -> LocalGemmaError:
    cache = repo.folder.parent
    if error.errno in _FULL:
        return DiskSpaceError(
            f"Cannot write {repo.model_id} to {cache}: {os.strerror(error.errno)}.",
            "Free some space, or set HF_HOME to a larger disk; the partial download is kept.",
        )
    return LocalGemmaError(
        f"Cannot use the cache folder {cache}: {quote_text(error.strerror or error, repo)}.",
        "Make the folder writable, or set HF_HOME to another one.",
    )


def _page(repo: Repo) -> str:
    return f"https://huggingface.co/{repo.model_id}"


def needs_token(repo: Repo) -> AccessError:
    return AccessError(
        f"{repo.model_id} is gated, and no Hugging Face token was found.",
        f"Accept the licence at {_page(repo)}, then run `hf auth login` or set HF_TOKEN, {_TRY_DEMO}.",
    )


def bad_token() -> AccessError:
    """Raised before the token is sent: the HTTP library's own error would quote it."""
    return AccessError(
        "The Hugging Face token contains invalid characters.",
        "Run `hf auth login` again, or correct HF_TOKEN.",
    )


def no_such_model(repo: Repo) -> NotFoundError:
    private = "" if repo.token else "; if it is private, run `hf auth login` or set HF_TOKEN"
    return NotFoundError(
        f"The hub has no model {repo.model_id}.", f"Check the spelling of the name{private}."
    )


def not_a_name(repo: Repo) -> NotFoundError:
    return NotFoundError(
        f"{quote_text(repr(repo.model_id), repo)} is not a model name, a hub id or a folder.",
        "`localgemma models list` shows the names; example of a hub id: google/gemma-2-2b-it.",
    )


def not_a_hub() -> NetworkError:
    return NetworkError(
        f"The server at {constants.ENDPOINT} is not a model hub.",
        "Check the network (a login page?) and HF_ENDPOINT.",
    )


def no_answer() -> NetworkError:
    return NetworkError("The hub does not answer.", f"Check the network and HF_ENDPOINT, {_TRY_DEMO}.")


def not_a_revision(repo: Repo) -> UsageError:
    return UsageError(
        f"{quote_text(repr(repo.revision), repo)} is not a valid revision.",
        "Use a branch, a tag or a commit, in --revision or as revision in models.toml.",
    )


def not_on_disk(model_id: str, offline: str | None) -> NetworkError:
    """The error without network access; `offline`: the option or variable that forbids the download."""
    return NetworkError(
        f"{model_id} is not completely on disk, and {offline} forbids the download.",
        f"{going_online(offline)}, {_TRY_DEMO}.",
    )


def going_online(offline: str | None) -> str:
    """How to allow network access again."""
    return "Remove --offline" if offline == "--offline" else f"Unset {offline}"


def no_space(repo: Repo, needed: int, free: int) -> DiskSpaceError:
    """The error for a full disk; `needed` and `free` in bytes."""
    return DiskSpaceError(
        f"{repo.model_id} needs {format_bytes(needed)} of disk space;"
        f" {format_bytes(free)} are free in {repo.folder.parent}.",
        "Free some space, or set HF_HOME to a larger disk.",
    )
