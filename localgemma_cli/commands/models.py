"""`localgemma models`: what is known by name, what of it is on disk, fetching it and removing it."""

from collections.abc import Mapping
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from localgemma_cli import options
from localgemma_cli.commands.consent import agreed, can_ask
from localgemma_cli.commands.help import CommandGroup
from localgemma_cli.environment import Streams, expand_home, standard_streams
from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.models.catalog import ModelFacts, catalogue, lookup
from localgemma_cli.models.model_names import models_on_disk, nearest_model
from localgemma_cli.models.own_models import OwnModel, own_models
from localgemma_cli.planning.memory import WeightFormat, weights_bytes
from localgemma_cli.render.json import write_line
from localgemma_cli.render.progress import show_progress
from localgemma_cli.sanitize import Block, one_line
from localgemma_cli.units import format_bytes

if TYPE_CHECKING:  # it imports the hub's client, which `--help` does not need
    from localgemma_cli.backends.pytorch.loading.quantized_cache import QuantizedCopy
    from localgemma_cli.planning.hardware import Hardware

_WIDE = 76  # columns; what a line of the list needs
models = typer.Typer(cls=CommandGroup, invoke_without_command=True)


@models.callback()
def _models(ctx: typer.Context) -> None:
    """The models that are known by name, and what is kept of them on disk; without a command, a list.

    Example: localgemma models pull 2b
    """
    if ctx.invoked_subcommand is None:
        list_models()


@models.command("list")
def list_models(
    json: options.Json = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the kept 4-bit copies whole, and check them.")
    ] = False,
) -> None:
    """List the models, their size, and what of them is on disk.

    Example: localgemma models list --json
    """
    from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies

    rows = [_row(facts) for facts in catalogue()]
    own = [_own_row(each) for each in own_models().values()]
    copies = list_copies(verify=verify)
    others = _other_rows()
    streams = standard_streams()
    if json:
        kept = [_kept_row(copy) for copy in copies]
        write_line(streams.stdout, {"models": rows, "own": own, "other": others, "kept": kept})
        return
    for row in rows:
        size = format_bytes(int(str(row["weights_bytes"])))
        streams.show(_line(row, size, str(row["id"])))
        streams.show(
            fill(
                str(row["summary"]),
                get_terminal_size().columns,
                initial_indent="    ",
                subsequent_indent="    ",
            )
        )
    if own:
        streams.show(Block("\nYour own, from models.toml:"))
    for row in own:
        what = row["id"] or row["endpoint"] or row["adapter"]
        streams.show(_line(row, "", str(what)))
    if others:
        streams.show(Block("\nOther downloads in the hub's cache:"))
    for row in others:
        streams.show(f"{one_line(str(row['id']))}  {_where(row)}")
    if copies:
        streams.show(
            Block("\nKept 4-bit copies, which make loading quick; `localgemma models rm NAME` removes them:")
        )
    for copy in copies:
        trouble = f"  ({copy.problem}: it will be made again)" if copy.problem else ""
        source = one_line(copy.source)
        streams.show(f"{one_line(copy.model):<5} {format_bytes(copy.size):>8}  {source}{trouble}")


def _line(row: Mapping[str, object], size: str, what: str) -> Block:
    """Side by side, or one below the other on a narrow terminal."""
    name, where, what = one_line(str(row["name"])), _where(row), one_line(what)
    wide = f"{name:<20} {size:>8}  {where:<21}  {what}"
    if (columns := get_terminal_size().columns) >= _WIDE:
        return Block(wide if len(wide) < columns else f"{name:<20} {size:>8}  {where}\n    {what}")
    return Block(f"{name:<20} {size:>8}\n    {where}\n    {what}")


@models.command("rm")
def remove_model(
    name: Annotated[str, typer.Argument(help="A name of `models list`, a hub id, or a folder.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Remove the downloaded weights too, without asking.")
    ] = False,
) -> None:
    """Remove a model's kept 4-bit copies, and, if you agree, its downloaded weights.

    Example: localgemma models rm 2b
    """
    from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies, remove_copy
    from localgemma_cli.models.hub import cache as hub_cache

    streams = standard_streams()
    ids = _ids_of(name)
    copies = [copy for copy in list_copies() if any(_is_of(copy, name, each) for each in ids)]
    for copy in copies:
        remove_copy(copy)
        streams.show(f"removed {format_bytes(copy.size)}: the 4-bit copy of {one_line(copy.source)}")
    downloaded = {each: size for each in ids if (size := hub_cache.downloaded_bytes(each))}
    if not copies and not downloaded:
        nearest = nearest_model(name, own_models())
        hint = "`localgemma models list` shows what is."
        meant = f"Did you mean {nearest}? " if nearest not in (None, name) else ""
        raise NotFoundError(f"Nothing of {name!r} is on disk.", meant + hint)
    for model_id, size in downloaded.items():
        if _agreed(streams, model_id, size, yes):
            hub_cache.delete_model(model_id)
            streams.show(f"removed {format_bytes(size)}: the downloaded {one_line(model_id)}")


@models.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(help="A name of `models list`, or a hub id.")],
    revision: options.Revision = None,
    force: options.Force = False,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accepted; this command never asks.")] = False,
) -> None:
    """Download a model, or what is missing of it; says first whether it fits.

    Example: localgemma models pull 2b
    """
    from localgemma_cli.commands.model_options import Choice, source_of
    from localgemma_cli.models.fetch import fetch_adapter, fetch_model
    from localgemma_cli.models.hub.cache import offline_by
    from localgemma_cli.models.hub.errors import going_online
    from localgemma_cli.planning.hardware import probe

    streams, hardware = standard_streams(), probe()
    if forbidden := offline_by(offline):
        raise UsageError(
            f"Downloading needs the network, which {forbidden} forbids.", f"{going_online(forbidden)}."
        )
    source = source_of(Choice(model=name, revision=revision, force=force), hardware)
    if not quiet:
        streams.say(one_line(_verdict(source.facts, hardware)))
    with show_progress(streams.stderr, quiet=quiet) as progress:
        folder, adapter = fetch_model(source, progress), fetch_adapter(source, progress)
    _tell_where(streams, source.facts.id, folder)
    if source.facts.adapter and adapter:
        _tell_where(streams, source.facts.adapter.id, adapter)


def _tell_where(streams: Streams, model_id: str, folder: Path) -> None:
    size = _downloaded(model_id)
    how = format_bytes(size) if size else "on disk already,"
    streams.show(one_line(f"{model_id}: {how} in {folder}"))


def _verdict(facts: ModelFacts, hardware: "Hardware") -> str:
    """Whether the model will fit here."""
    from localgemma_cli.planning.plan import Overrides, make_plan
    from localgemma_cli.planning.presets import load_presets

    try:
        plan = make_plan(facts, None, hardware, Overrides(), load_presets())
    except LocalGemmaError as error:
        return f"{facts.name} will not run here: {error.message}"
    figures = (
        f"{format_bytes(plan.memory.total_bytes)} with preset {plan.preset},"
        f" and {format_bytes(plan.memory.available_bytes)} are usable on {hardware.name}"
    )
    if plan.memory.fits:
        return f"{facts.name} fits here: it needs {figures}."
    return f"{facts.name} does not fit here: it needs {figures}. {plan.hint or ''}".rstrip()


def _is_of(copy: "QuantizedCopy", name: str, model_id: str) -> bool:
    return name in (copy.model, copy.folder.name, copy.source) or copy.source.startswith(f"{model_id}@")


def _agreed(streams: Streams, model_id: str, size: int, yes: bool) -> bool:
    """Other programs use the hub's cache too, so nothing goes from there unasked."""
    if yes:
        return True
    if not can_ask(streams):
        streams.say(one_line(f"kept: the downloaded {model_id}, {format_bytes(size)}; --yes removes it"))
        return False
    return agreed(streams, f"Remove the downloaded {one_line(model_id)}, {format_bytes(size)}?")


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
    return WeightFormat("float16", stored.kind, stored.nested) if stored else WeightFormat("bfloat16")


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
        "on_disk": bool(parts) and all(expand_home(each).is_dir() or _cached(each) for each in parts),
        "disk_bytes": sum(map(_downloaded, parts)),
    }


def _other_rows() -> list[dict[str, object]]:
    """What is on disk under no name of this program's or the user's."""
    listed = {facts.id for facts in catalogue()}.union(*(_ids_of(name) for name in own_models()))
    sizes = {each: _downloaded(each) for each in models_on_disk() if each not in listed}
    return [
        {"id": each, "on_disk": _cached(each), "disk_bytes": size} for each, size in sizes.items() if size
    ]


def _where(row: Mapping[str, object]) -> str:
    """On disk with its size, a part of it (a broken-off download, a tokenizer), or not at all."""
    size = int(str(row["disk_bytes"]))
    if row["on_disk"]:
        return f"on disk, {format_bytes(size)}" if size else "on disk"
    return f"{format_bytes(size)} of it on disk" if size else "not on disk"


def _ids_of(name: str) -> list[str]:
    """The hub ids or folders that a name stands for: a model's, and its adapter's."""
    own = own_models().get(name)
    parts = [each for each in (own.repository, own.adapter) if each] if own else [name]
    return [facts.id if (facts := lookup(each)) else each for each in parts]


def _downloaded(model_id: str) -> int:
    from localgemma_cli.models.hub.cache import downloaded_bytes

    return downloaded_bytes(model_id)


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
    from localgemma_cli.models.hub.cache import cached_snapshot

    return cached_snapshot(model_id) is not None
