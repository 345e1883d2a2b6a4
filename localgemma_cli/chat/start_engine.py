"""Explain the engine that was chosen, then load it, for commands that start no chat."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from localgemma_cli.command_options import names_model
from localgemma_cli.environment import Streams
from localgemma_cli.render.messages import colour_prefix
from localgemma_cli.sanitize import one_line

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend
    from localgemma_cli.chat.engine import ChatEngine
    from localgemma_cli.options import Options


def explain_engine(engine: "ChatEngine", streams: Streams, options: "Options") -> None:
    """Print the engine's warnings and, with `--verbose`, its reasons."""
    if not options.quiet:
        for warning in engine.warnings:
            streams.say(one_line(f"warning: {warning}"), colour_prefix(streams.stderr))
    if options.verbose:
        for reason in engine.reasons:
            streams.say(reason)


def start_engine(
    engine: "ChatEngine", streams: Streams, options: "Options", places: Mapping[str, str]
) -> "Backend":
    """Load the engine, with the user's consent to a large download, and print its note."""
    from localgemma_cli.chat.background_load import load_and_wait
    from localgemma_cli.chat.engine import LocalEngine
    from localgemma_cli.models.hub.consent import agree_to_download
    from localgemma_cli.render.progress import show_progress

    if isinstance(engine, LocalEngine):
        agree_to_download(engine.source, streams, named=names_model(places), yes=options.yes)
    with show_progress(streams.stderr, quiet=options.quiet or options.accessible) as progress:
        backend = load_and_wait(engine.load, progress)
    if backend.note and not options.quiet:
        streams.say(f"note: {backend.note}")
    return backend
