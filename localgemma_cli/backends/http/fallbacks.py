"""What to do without after a server has refused a request: optional fields, or the system message."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from localgemma_cli.backends.http.openai import OPTIONAL_FIELDS
from localgemma_cli.backends.http.server_errors import Refusal

_ROLES = re.compile(r"\b(roles?|system)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Compatibility:
    """What this server is known not to support: a system message, and the `omitted` fields of a request."""

    folds_system: bool = False
    omitted: frozenset[str] = frozenset()


def fall_back(
    known: Compatibility, refusal: Refusal, body: Mapping[str, object], *, has_system: bool
) -> tuple[Compatibility, str] | None:
    """What to leave out of the next attempt, and a notice for the user; None if nothing can help.

    A server whose template rejects a system message may fail without giving a reason (HTTP 500).
    """
    if refusal.status not in (400, 422, 500):
        return None
    names = [name for name in OPTIONAL_FIELDS if name in body and re.search(rf"\b{name}\b", refusal.text)]
    if names and refusal.status != 500:
        notice = f"[server does not support {', '.join(names)}; omitted]"
        return replace(known, omitted=known.omitted | set(names)), notice
    if has_system and not known.folds_system and (refusal.status == 500 or _ROLES.search(refusal.text)):
        notice = "[server does not support a system message; the first user message starts with its text]"
        return replace(known, folds_system=True), notice
    return None
