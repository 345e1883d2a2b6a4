"""`localgemma models`: list, download and remove models."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from localgemma_cli.command_options import takes_options
from localgemma_cli.commands.help import CommandGroup
from localgemma_cli.environment import Streams, expand_home, standard_streams
from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.models.catalog import ModelFacts, catalogue, lookup
from localgemma_cli.models.gguf_names import gguf_name, parse_gguf_name
from localgemma_cli.models.hub.gguf_cache import cached_gguf, delete_gguf, list_cached_ggufs
from localgemma_cli.models.model_names import models_on_disk, nearest_model
from localgemma_cli.models.own_models import OwnModel, own_models
from localgemma_cli.options import Options
from localgemma_cli.planning.memory import WeightFormat, weights_bytes
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


@models.command("list")
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

    rows = [_row(facts) for facts in catalogue()]
    own = [_own_row(each) for each in own_models().values()]
    copies = list_copies(verify=verify)
    others = _other_rows()
    streams = standard_streams()
    if options.json:
        kept = [_kept_row(copy) for copy in copies]
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


@models.command("rm")
def remove_model(
    name: Annotated[str, typer.Argument(help="Remove this name of `models list`, hub id or folder.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Also remove the downloaded weights without asking.")
    ] = False,
) -> None:
    """Remove a model's kept 4-bit copies and, if you confirm, its downloaded weights.

    Example: localgemma models rm 2b
    """
    from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies, remove_copy

    streams = standard_streams()
    ids = _ids_of(name)
    copies = [copy for copy in list_copies() if any(_is_of(copy, name, each) for each in ids)]
    for copy in copies:
        remove_copy(copy)
        streams.show(f"removed {format_bytes(copy.size)}: the 4-bit copy of {one_line(copy.source)}")
    downloaded = {each: size for each in ids if (size := _downloaded(each))}
    if not copies and not downloaded:
        nearest = nearest_model(name, own_models())
        gguf = parse_gguf_name(name)
        hint = "List what is on disk with: localgemma models list"
        if gguf and _downloaded(gguf.repository):
            hint = f"Other files of it are; remove them all with: localgemma models rm {gguf.repository}"
        meant = f"Did you mean {nearest}? " if nearest not in (None, name) else ""
        raise NotFoundError(f"Nothing of {name!r} is on disk.", meant + hint)
    for model_id, size in downloaded.items():
        if _may_remove(streams, model_id, size, yes):
            _delete(model_id)
            streams.show(f"removed {format_bytes(size)}: the downloaded {one_line(model_id)}")


@models.command("pull")
@takes_options("models pull")
def pull_model(
    options: Options,
    name: Annotated[str, typer.Argument(help="Download this name of `models list`, or a hub id.")],
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
    size = _downloaded(model_id)
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


def _row(facts: ModelFacts) -> dict[str, object]:
    return {
        "name": facts.name,
        "id": facts.id,
        "parameters": facts.architecture.parameters,
        "weights_bytes": weights_bytes(facts.architecture, _stored_as(facts)),
        "licence": facts.licence,
        "gated": facts.gated,
        "form": facts.form,
        "on_disk": facts.bundled or _cached(facts.id),
        "disk_bytes": 0 if facts.bundled else _downloaded(facts.id),
        "summary": facts.summary,
    }


def _stored_as(facts: ModelFacts) -> WeightFormat:
    stored = facts.stored
    return (
        WeightFormat("float16", stored.kind, stored.nested, stored_bytes=stored.bytes)
        if stored
        else WeightFormat("bfloat16")
    )


def _own_row(own: OwnModel) -> dict[str, object]:
    parts = _ids_of(own.name)
    return {
        "name": own.name,
        "id": parts[0] if own.repository else None,
        "revision": own.revision,
        "template": own.template,
        "adapter": own.adapter,
        "endpoint": own.endpoint,
        "system": own.system,
        "sampling": dict(own.sampling),
        "on_disk": bool(parts) and all(os.path.isdir(expand_home(each)) or _cached(each) for each in parts),
        "disk_bytes": sum(map(_downloaded, parts)),
    }


def _other_rows() -> list[dict[str, object]]:
    """Downloads that neither the catalogue nor models.toml names; each GGUF model by itself."""
    listed = {facts.id for facts in catalogue()}.union(*(_ids_of(name) for name in own_models()))
    named = [name for each in listed if (name := parse_gguf_name(each))]
    listed.update(cached.name.id for name in named if (cached := cached_gguf(name)))
    rows = [row for each in models_on_disk() if each not in listed for row in _repository_rows(each)]
    return [row for row in rows if row["id"] not in listed]


def _repository_rows(repository: str) -> list[dict[str, object]]:
    """Each GGUF model of a repository on disk, and the rest of it."""
    ggufs = [(each.name.id, each.model.size) for each in list_cached_ggufs(repository)]
    rest = _downloaded(repository) - sum(size for _, size in ggufs)
    others = (
        [{"id": repository, "on_disk": _has_snapshot(repository), "disk_bytes": rest}] if rest > 0 else []
    )
    return [*({"id": id, "on_disk": True, "disk_bytes": size} for id, size in ggufs), *others]


def _where(row: Mapping[str, object]) -> str:
    """Whether all of a model, a part (an interrupted download, a tokenizer) or nothing is on disk."""
    size = int(str(row["disk_bytes"]))
    if row["on_disk"]:
        return f"on disk, {format_bytes(size)}" if size else "on disk"
    return f"{format_bytes(size)} of it on disk" if size else "not on disk"


def _ids_of(name: str) -> list[str]:
    """The hub ids or folders behind a name: a model's, and its adapter's."""
    own = own_models().get(name)
    parts = [each for each in (own.repository, own.adapter) if each] if own else [name]
    return [facts.id if (facts := lookup(each)) else each for each in parts]


def _downloaded(model_id: str) -> int:
    """Bytes on disk of a repository, or of one GGUF model in it."""
    from localgemma_cli.models.hub.cache import downloaded_bytes

    if name := parse_gguf_name(model_id):
        cached = cached_gguf(name)
        return cached.model.size if cached else 0
    return downloaded_bytes(model_id)


def _delete(model_id: str) -> None:
    from localgemma_cli.models.hub.cache import delete_model

    name = parse_gguf_name(model_id)
    cached = cached_gguf(name) if name else None
    if cached:
        delete_gguf(cached)
    else:
        delete_model(model_id)


def _kept_row(copy: "QuantizedCopy") -> dict[str, object]:
    return {
        "model": copy.model,
        "source": copy.source,
        "bytes": copy.size,
        "form": dict(copy.form),
        "folder": str(copy.folder),
        "problem": copy.problem or None,
    }


def _cached(model_id: str) -> bool:
    return cached_gguf(gguf_name(model_id)) is not None or _has_snapshot(model_id)


def _has_snapshot(model_id: str) -> bool:
    from localgemma_cli.models.hub.cache import cached_snapshot

    return cached_snapshot(model_id) is not None
