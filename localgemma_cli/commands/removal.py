"""Ask before what cannot be undone."""

import shlex
from collections.abc import Iterable, Sequence

from localgemma_cli.environment import Streams
from localgemma_cli.errors import UsageError


def agree_to_remove(
    streams: Streams, kind: str, command: Sequence[str], question: str, listed: Iterable[str] = ()
) -> bool:
    """Whether the user agrees, after `listed` is shown.

    UsageError where nobody can be asked: `kind` is what would be removed, `command` what removes it then.
    """
    if not streams.can_ask():
        raise UsageError(f"Removing {kind} needs confirmation.", f"Run: {shlex.join(command)}")
    for line in listed:
        streams.say(line)
    if streams.confirm(question):
        return True
    streams.say("Nothing was removed.")
    return False
