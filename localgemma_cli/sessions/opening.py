"""The user's own database of conversations, opened in one place so that nobody misses what is said of it."""

from localgemma_cli.environment import standard_streams
from localgemma_cli.render.messages import lead_in_colour
from localgemma_cli.sanitize import one_line
from localgemma_cli.sessions.store import Store, default_path


def open_store() -> Store:
    """Raises SavingError where the database cannot be opened.

    A damaged file is set aside, and a warning on stderr says where it is now.
    """
    store = Store(default_path())
    if store.notice:
        streams = standard_streams()
        streams.say(f"warning: {one_line(store.notice)}", lead_in_colour(streams.stderr))
    return store
