"""Open the user's saved conversations; every command opens them here, so that a warning always appears."""

from localgemma_cli.environment import standard_streams
from localgemma_cli.render.messages import colour_prefix
from localgemma_cli.sanitize import one_line
from localgemma_cli.sessions.store import Store, default_path


def open_store() -> Store:
    """Open the saved conversations; raises SavingError if that is not possible.

    A damaged file is moved away, and a warning on stderr names its new place.
    """
    store = Store(default_path())
    if store.notice:
        streams = standard_streams()
        streams.say(f"warning: {one_line(store.notice)}", colour_prefix(streams.stderr))
    return store
