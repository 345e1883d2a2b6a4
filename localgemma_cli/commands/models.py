"""`localgemma models`: list, download and remove models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from localgemma_cli.command_options import takes_options
from localgemma_cli.commands.help import CommandGroup, GroupedCommand
from localgemma_cli.commands.model_listing import (
    bytes_on_disk,
    catalogue_row,
    delete_download,
    ids_behind,
    kept_copy_row,
    other_rows,
    own_model_row,
)
from localgemma_cli.environment import Streams, standard_streams
from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.models.catalog import ModelFacts, catalogue
from localgemma_cli.models.gguf_names import parse_gguf_name
from localgemma_cli.models.model_names import nearest_model
from localgemma_cli.models.own_models import own_models
from localgemma_cli.options import Options
from localgemma_cli.render.json import write_line
from localgemma_cli.render.progress import show_progress
from localgemma_cli.sanitize import Block, one_line
from localgemma_cli.units import format_bytes

if TYPE_CHECKING:  # `--help` does not need them
    from localgemma_cli.backends.pytorch.loading.quantized_cache import QuantizedCopy
    from localgemma_cli.models.resolve import Source
    from localgemma_cli.planning.hardware import Hardware

_WIDE = 76  # columns that a line of the list needs
_INDENT = "    "
models = typer.Typer(cls=CommandGroup, invoke_without_command=True)


@models.callback()
def _models(ctx: typer.Context) -> None:
    """List, download and remove models. Default: list them.

    Example: localgemma models pull 2b
    """
    if ctx.invoked_subcommand is None:
        list_models()


@models.command("list", cls=GroupedCommand)
@takes_options("models list")
def list_models(
    options: Options,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the kept 4-bit copies completely, and check them.")
    ] = False,
) -> None:
    """List the models, their sizes, and what is on disk.

    Example: localgemma models list --json
    """
    from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies

    rows = [catalogue_row(facts) for facts in catalogue()]
    own = [own_model_row(each) for each in own_models().values()]
    copies = list_copies(verify=verify)
    others = other_rows()
    streams = standard_streams()
    if options.json:
        kept = [kept_copy_row(copy) for copy in copies]
        write_line(streams.stdout, {"models": rows, "own": own, "other": others, "kept": kept})
        return
    for line in (*_catalogue_lines(rows), *_own_lines(own), *_other_lines(others), *_kept_lines(copies)):
        streams.show(line)


def _catalogue_lines(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    columns = get_terminal_size().columns
    for row in rows:
        size = format_bytes(int(str(row["weights_bytes"])))
        yield _line(row, size, str(row["id"]))
        yield fill(str(row["summary"]), columns, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _own_lines(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    if rows:
        yield Block("\nYour own, from models.toml:")
    for row in rows:
        yield _line(row, "", str(row["id"] or row["endpoint"] or row["adapter"]))


def _other_lines(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    if rows:
        yield Block("\nOther downloads in the hub's cache:")
    for row in rows:
        yield f"{one_line(str(row['id']))}  {_where(row)}"


def _kept_lines(copies: Sequence["QuantizedCopy"]) -> Iterator[str]:
    if copies:
        yield Block("\nKept 4-bit copies, which load fast; `localgemma models rm NAME` removes them:")
    for copy in copies:
        problem = f"  ({copy.problem}; the next load replaces it)" if copy.problem else ""
        size, source = format_bytes(copy.size), one_line(copy.source)
        yield f"{one_line(copy.model):<5} {size:>8}  {source}{problem}"


def _line(row: Mapping[str, object], size: str, what: str) -> Block:
    """One model in columns, or in three lines on a narrow terminal."""
    name, where, what = one_line(str(row["name"])), _where(row), one_line(what)
    wide = f"{name:<20} {size:>8}  {where:<21}  {what}"
    if (columns := get_terminal_size().columns) >= _WIDE:
        return Block(wide if len(wide) < columns else f"{name:<20} {size:>8}  {where}\n    {what}")
    return Block(f"{name:<20} {size:>8}\n    {where}\n    {what}")


def _where(row: Mapping[str, object]) -> str:
    """Whether all of a model, a part (an interrupted download, a tokenizer) or nothing is on disk."""
    size = int(str(row["disk_bytes"]))
    if row["on_disk"]:
        return f"on disk, {format_bytes(size)}" if size else "on disk"
    return f"{format_bytes(size)} of it on disk" if size else "not on disk"


@models.command("rm", cls=GroupedCommand)
def remove_model(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Remove this name of `models list`, hub id or folder.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Also remove the downloaded weights without asking.")
    ] = False,
) -> None:
    """Remove a model's kept 4-bit copies and, if you confirm, its downloaded weights.

    Example: localgemma models rm 2b
    """
    from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies, remove_copy

    streams = standard_streams()
    ids = ids_behind(name)
    copies = [copy for copy in list_copies() if any(_is_of(copy, name, each) for each in ids)]
    for copy in copies:
        remove_copy(copy)
        streams.show(f"removed {format_bytes(copy.size)}: the 4-bit copy of {one_line(copy.source)}")
    downloaded = {each: size for each in ids if (size := bytes_on_disk(each))}
    if not copies and not downloaded:
        nearest = nearest_model(name, own_models())
        gguf = parse_gguf_name(name)
        hint = "List what is on disk with: localgemma models list"
        if gguf and bytes_on_disk(gguf.repository):
            hint = f"Other files of it are; remove them all with: localgemma models rm {gguf.repository}"
        meant = f"Did you mean {nearest}? " if nearest not in (None, name) else ""
        raise NotFoundError(f"Nothing of {name!r} is on disk.", meant + hint)
    for model_id, size in downloaded.items():
        if _may_remove(streams, model_id, size, yes):
            delete_download(model_id)
            streams.show(f"removed {format_bytes(size)}: the downloaded {one_line(model_id)}")


@models.command("pull", cls=GroupedCommand)
@takes_options("models pull")
def pull_model(
    options: Options,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Download this name of `models list`, or a hub id.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ignored, for scripts: this command never asks.")
    ] = False,
) -> None:
    """Download a model, or its missing files, and show whether it fits.

    Example: localgemma models pull 2b
    """
    from localgemma_cli.models.fetch import fetch_adapter, fetch_model
    from localgemma_cli.models.hub.cache import offline_by
    from localgemma_cli.models.hub.errors import going_online
    from localgemma_cli.planning.hardware import probe
    from localgemma_cli.planning.model_options import find_source

    streams, hardware = standard_streams(), probe()
    if forbidden := offline_by(options.offline):
        raise UsageError(f"{forbidden} forbids downloading.", f"{going_online(forbidden)}.")
    source = find_source(replace(options, model=name), hardware)
    if not options.quiet:
        for line in (source.note, _verdict(source.facts, hardware), *_announcements(source)):
            if line:
                streams.say(one_line(line))
    with show_progress(streams.stderr, quiet=options.quiet) as progress:
        folder, adapter = fetch_model(source, progress), fetch_adapter(source, progress)
    _show_folder(streams, source.facts.id, folder)
    if source.facts.adapter and adapter:
        _show_folder(streams, source.facts.adapter.id, adapter)


def _announcements(source: "Source") -> Iterator[str]:
    from localgemma_cli.models.fetch import list_downloads

    for each in list_downloads(source):
        yield f"Downloading {each.model_id}: {format_bytes(each.size)}, licence: {each.licence}."


def _show_folder(streams: Streams, model_id: str, folder: Path) -> None:
    size = bytes_on_disk(model_id)
    how = format_bytes(size) if size else "already on disk,"
    streams.show(one_line(f"{model_id}: {how} in {folder}"))


def _verdict(facts: ModelFacts, hardware: "Hardware") -> str:
    """Whether the model fits in this machine's memory, and with which preset."""
    from localgemma_cli.planning.plan import Overrides, make_plan
    from localgemma_cli.planning.presets import load_presets

    try:
        plan = make_plan(facts, None, hardware, Overrides(), load_presets())
    except LocalGemmaError as error:
        return f"{facts.name} cannot run here: {error.message}"
    figures = (
        f"{format_bytes(plan.memory.total_bytes)} with preset {plan.preset},"
        f" and {format_bytes(plan.memory.available_bytes)} are usable on {hardware.name}"
    )
    if plan.memory.fits:
        return f"{facts.name} fits here: it needs {figures}."
    return f"{facts.name} does not fit here: it needs {figures}. {plan.hint or ''}".rstrip()


def _is_of(copy: "QuantizedCopy", name: str, model_id: str) -> bool:
    return name in (copy.model, copy.folder.name, copy.source) or copy.source.startswith(f"{model_id}@")


def _may_remove(streams: Streams, model_id: str, size: int, yes: bool) -> bool:
    """Whether to remove a download: other programs use the hub's cache too, so ask first."""
    if yes:
        return True
    if not streams.can_ask():
        streams.say(one_line(f"kept: the downloaded {model_id}, {format_bytes(size)}; remove it with --yes"))
        return False
    return streams.confirm(f"Remove the downloaded {one_line(model_id)}, {format_bytes(size)}?")
