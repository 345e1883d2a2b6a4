"""`localgemma history`: list, show, search, export, import and remove saved conversations."""

import time
from pathlib import Path
from typing import Annotated

import typer

from localgemma_cli.chat.phrases import format_count
from localgemma_cli.command_options import takes_options
from localgemma_cli.commands.help import CommandGroup, GroupedCommand
from localgemma_cli.commands.removal import agree_to_remove
from localgemma_cli.environment import standard_streams
from localgemma_cli.options import Options
from localgemma_cli.render.json import write_line
from localgemma_cli.sanitize import one_line
from localgemma_cli.sessions.export_file import write_new_file
from localgemma_cli.sessions.formats import (
    FORMATS,
    format_conversation,
    format_for_display,
    format_of,
    parse_conversation,
)
from localgemma_cli.sessions.opening import open_store
from localgemma_cli.sessions.summaries import Summary
from localgemma_cli.text import decode_utf8, read_file

history = typer.Typer(cls=CommandGroup, invoke_without_command=True)
Which = Annotated[str, typer.Argument(metavar="NAME", help="A name, or a number in `history list`.")]
_AROUND = 60  # characters shown on each side of a search hit
_IMPORT_LIMIT = 64 * 2**20  # bytes


@history.callback()
def _history(ctx: typer.Context) -> None:
    """List, search, export, import and remove saved conversations. Default: list them.

    Example: localgemma history show 12
    """
    if ctx.invoked_subcommand is None:
        list_conversations()


@history.command("list", cls=GroupedCommand)
@takes_options("history list")
def list_conversations(
    options: Options,
    query: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="List only conversations with these words.")
    ] = None,
) -> None:
    """List the conversations, latest first.

    Example: localgemma history list rivers
    """
    streams = standard_streams()
    found = open_store().summaries(" ".join(query or []))
    if options.json:
        write_line(streams.stdout, {"conversations": [_row(each) for each in found]})
        return
    if not found:
        streams.say(_nothing_found(query))
    for each in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated))
        streams.show(f"{each.id:>4}  {when}  {format_count(each.turns, 'turn'):>9}  {_title(each)}")


@history.command("show", cls=GroupedCommand)
@takes_options("history show")
def show(options: Options, which: Which) -> None:
    """Show a whole conversation.

    Example: localgemma history show 12
    """
    store = open_store()
    conversation = store.conversation(store.find(which), "")
    text = format_conversation(conversation, "json") if options.json else format_for_display(conversation)
    standard_streams().emit(text)


@history.command("search", cls=GroupedCommand)
@takes_options("history search")
def search(
    options: Options,
    words: Annotated[
        list[str], typer.Argument(metavar="WORD", help="Find turns that contain all these words.")
    ],
) -> None:
    """Find turns by their words, latest first.

    Example: localgemma history search tax return
    """
    query, streams = " ".join(words), standard_streams()
    found = open_store().search(query)
    if options.json:
        rows = [{"conversation": id, "question": q, "answer": a} for id, q, a in found]
        write_line(streams.stdout, {"turns": rows})
        return
    if not found:
        streams.say(_nothing_found(words))
    for id, question, answer in found:
        streams.show(f"{id:>4}  {one_line(_around(words, question))}")
        streams.show(f"      {one_line(_around(words, answer))}")


@history.command("export", cls=GroupedCommand)
def export(
    which: Which,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help=f"Write to this file, which ends in {', '.join(FORMATS)}. Default: print JSON Lines.",
        ),
    ] = "-",
) -> None:
    """Write a conversation to a file: .md, .json (OpenAI's form) or .jsonl.

    Example: localgemma history export 12 rivers.md
    """
    store = open_store()
    conversation = store.conversation(store.find(which), "")
    if file == "-":
        standard_streams().emit(format_conversation(conversation, "jsonl"))
    else:
        write_new_file(Path(file), format_conversation(conversation, format_of(file)))


@history.command("import", cls=GroupedCommand)
def import_conversation(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=f"Read this exported conversation: {', '.join(FORMATS)}.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Save it under this name.")
    ] = None,
) -> None:
    """Read a conversation from a file and save it as a new one.

    Example: localgemma history import rivers.md
    """
    form = format_of(file.name)
    data = read_file(file, _IMPORT_LIMIT, pipes=True)
    conversation = parse_conversation(decode_utf8(data, str(file)), form)
    id = open_store().import_conversation(conversation, name)
    standard_streams().say(f"saved as conversation {id}")


@history.command("rm", cls=GroupedCommand)
def remove(
    which: Annotated[list[str], typer.Argument(metavar="NAME", help="Remove these, by name or number.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove conversations for good; asks first.

    Example: localgemma history rm 12 13
    """
    streams, store = standard_streams(), open_store()
    ids = list(dict.fromkeys(store.find(each) for each in which))
    known = {
        each.id: f"{each.id:>4}  {format_count(each.turns, 'turn')}  {_title(each)}"
        for each in store.summaries()
    }
    lines = [known.get(id, f"{id:>4}  empty") for id in ids]
    what = "this conversation" if len(ids) == 1 else f"these {len(ids)} conversations"
    command = ["localgemma", "history", "rm", "--yes", *which]
    if not yes and not agree_to_remove(streams, "conversations", command, f"Remove {what} for good?", lines):
        return
    for id, line in zip(ids, lines, strict=True):
        store.remove(id)
        streams.show(f"removed {line.strip()}")


def _nothing_found(words: list[str] | None) -> str:
    return "No saved conversation matches." if words else "There are no saved conversations yet."


def _title(each: Summary) -> str:
    name = f"{one_line(each.name)}: " if each.name else ""
    return f"{name}{one_line(each.title)}"


def _row(each: Summary) -> dict[str, object]:
    return {
        "id": each.id,
        "name": each.name,
        "title": each.title,
        "turns": each.turns,
        "updated": each.updated,
        "model": each.model,
    }


def _around(words: list[str], text: str) -> str:
    """The part of `text` around the first of the words."""
    places = [text.lower().find(word.lower()) for word in words]
    at = min((place for place in places if place >= 0), default=0)
    start, end = max(0, at - _AROUND), at + _AROUND
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
