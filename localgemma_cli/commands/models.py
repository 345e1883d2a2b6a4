"""`localgemma models`: what is known by name, what of it is on disk, and removing it from there."""

from typing import TYPE_CHECKING, Annotated

import typer

from localgemma_cli import options
from localgemma_cli.environment import Streams, standard_streams
from localgemma_cli.errors import NotFoundError
from localgemma_cli.planning.catalog import ModelFacts, catalogue, lookup
from localgemma_cli.planning.choices import gigabytes
from localgemma_cli.planning.memory import WeightFormat, weights_bytes
from localgemma_cli.render.json import write_line
from localgemma_cli.render.sanitize import one_line

if TYPE_CHECKING:  # it imports the hub's client, which `--help` does not need
    from localgemma_cli.backends.local.weights_cache import Kept

models = typer.Typer(no_args_is_help=True)


@models.callback()
def _models() -> None:
    """The models that are known by name, and what is kept of them on disk.

    Example: localgemma models list
    """


@models.command("list")
def list_models(
    json: options.Json = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the kept 4-bit copies whole, and check them.")
    ] = False,
) -> None:
    """List the models, their size in bfloat16, whether they are on disk, and their kept 4-bit copies.

    Example: localgemma models list --json
    """
    from localgemma_cli.backends.local.weights_cache import kept_copies

    rows = [_row(facts) for facts in catalogue()]
    copies = kept_copies(verify=verify)
    stdout = standard_streams().stdout
    if json:
        write_line(stdout, {"models": rows, "kept": [_kept_row(copy) for copy in copies]})
        return
    for row in rows:
        size = gigabytes(int(str(row["weights_bytes"])))
        where = "on disk" if row["on_disk"] else "not on disk"
        stdout.write(f"{row['name']:<5} {size:>8}  {where:<11}  {row['id']}\n      {row['summary']}\n")
    if copies:
        stdout.write(
            "\nKept 4-bit copies, which make loading quick; `localgemma models rm NAME` removes them:\n"
        )
    for copy in copies:
        trouble = f"  ({copy.problem}: it will be made again)" if copy.problem else ""
        source = one_line(copy.source)
        stdout.write(f"{one_line(copy.model):<5} {gigabytes(copy.size):>8}  {source}{trouble}\n")


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
    from localgemma_cli.backends.local import hub_cache
    from localgemma_cli.backends.local.weights_cache import kept_copies, remove

    streams = standard_streams()
    facts = lookup(name)
    model_id = facts.id if facts else name
    copies = [copy for copy in kept_copies() if _is_of(copy, name, model_id)]
    for copy in copies:
        remove(copy)
        streams.stdout.write(f"removed {gigabytes(copy.size)}: the 4-bit copy of {one_line(copy.source)}\n")
    downloaded = hub_cache.downloaded_bytes(model_id)
    if not copies and not downloaded:
        raise NotFoundError(f"Nothing of {name!r} is on disk.", "`localgemma models list` shows what is.")
    if downloaded and _agreed(streams, model_id, downloaded, yes):
        hub_cache.forget(model_id)
        streams.stdout.write(f"removed {gigabytes(downloaded)}: the downloaded {model_id}\n")


def _is_of(copy: "Kept", name: str, model_id: str) -> bool:
    return name in (copy.model, copy.folder.name, copy.source) or copy.source.startswith(f"{model_id}@")


def _agreed(streams: Streams, model_id: str, size: int, yes: bool) -> bool:
    """Other programs use the hub's cache too, so nothing goes from there unasked."""
    if yes:
        return True
    if not streams.stdin.isatty():
        streams.stderr.write(f"kept: the downloaded {model_id}, {gigabytes(size)}; --yes removes it too\n")
        return False
    streams.stderr.write(f"Remove the downloaded {model_id} as well, {gigabytes(size)}? [y/N] ")
    streams.stderr.flush()
    return streams.stdin.readline().strip().lower() in ("y", "yes")


def _row(facts: ModelFacts) -> dict[str, object]:
    return {
        "name": facts.name,
        "id": facts.id,
        "parameters": facts.architecture.parameters,
        "weights_bytes": weights_bytes(facts.architecture, WeightFormat("bfloat16", "none", False)),
        "licence": facts.licence,
        "gated": facts.gated,
        "on_disk": facts.bundled or _cached(facts.id),
        "summary": facts.summary,
    }


def _kept_row(copy: "Kept") -> dict[str, object]:
    return {
        "model": copy.model,
        "source": copy.source,
        "bytes": copy.size,
        "form": dict(copy.form),
        "folder": str(copy.folder),
        "problem": copy.problem or None,
    }


def _cached(model_id: str) -> bool:
    from localgemma_cli.backends.local.hub import cached

    return cached(model_id) is not None
