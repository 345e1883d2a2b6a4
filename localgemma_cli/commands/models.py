"""`localgemma models`: what is known by name, and what of it is on disk."""

import typer

from localgemma_cli import options
from localgemma_cli.environment import standard_streams
from localgemma_cli.planning.catalog import ModelFacts, catalogue
from localgemma_cli.planning.choices import gigabytes
from localgemma_cli.planning.memory import WeightFormat, weights_bytes
from localgemma_cli.render.json import write_line

models = typer.Typer(no_args_is_help=True)


@models.callback()
def _models() -> None:
    """The models that are known by name.

    Example: localgemma models list
    """


@models.command("list")
def list_models(json: options.Json = False) -> None:
    """List the models, their size in bfloat16, and whether they are on disk.

    Example: localgemma models list --json
    """
    rows = [_row(facts) for facts in catalogue()]
    stdout = standard_streams().stdout
    if json:
        write_line(stdout, {"models": rows})
        return
    for row in rows:
        size = gigabytes(int(str(row["weights_bytes"])))
        where = "on disk" if row["on_disk"] else "not on disk"
        stdout.write(f"{row['name']:<5} {size:>8}  {where:<11}  {row['id']}\n      {row['summary']}\n")


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


def _cached(model_id: str) -> bool:
    from localgemma_cli.backends.local.hub import cached

    return cached(model_id) is not None
