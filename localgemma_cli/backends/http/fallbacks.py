"""What a server refuses and can do without: options that it does not know, a system message."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from localgemma_cli.backends.http.failures import Refusal
from localgemma_cli.backends.http.openai import DROPPABLE

_ROLES = re.compile(r"\b(roles?|system)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Manner:
    """How this server wants to be asked, as far as it has said so."""

    folds_system: bool = False
    dropped: frozenset[str] = frozenset()


def adapted(
    manner: Manner, refusal: Refusal, body: Mapping[str, object], *, system: bool
) -> tuple[Manner, str] | None:
    """The manner that may be taken, and a word on it; None where the refusal is about something else.

    Some servers fail without a reason (500) where their template refuses a system message.
    """
    if refusal.status not in (400, 422, 500):
        return None
    names = [name for name in DROPPABLE if name in body and re.search(rf"\b{name}\b", refusal.words)]
    if names and refusal.status != 500:
        word = f"[the server does not take {', '.join(names)}; it answers without]"
        return replace(manner, dropped=manner.dropped | set(names)), word
    if system and not manner.folds_system and (refusal.status == 500 or _ROLES.search(refusal.words)):
        word = "[the server refuses a system message; its text opens the first turn instead]"
        return replace(manner, folds_system=True), word
    return None
