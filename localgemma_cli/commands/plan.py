"""`localgemma plan`: what would run here, and whether it fits, before any download."""

from collections.abc import Sequence
from typing import Annotated

import typer

from localgemma_cli.command_options import takes_options, value_places
from localgemma_cli.environment import Streams, standard_streams
from localgemma_cli.options import Options
from localgemma_cli.planning.hardware import Hardware, parse_size, parse_sizes, probe_or_describe
from localgemma_cli.planning.model_options import make_overrides, plan_model, resolve_draft
from localgemma_cli.planning.plan import LoadPlan, plan_all
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.json import write_line


@takes_options("plan")
def plan(
    ctx: typer.Context,
    options: Options,
    all_: Annotated[
        bool, typer.Option("--all", help="Print every model with every preset, as a table.")
    ] = False,
) -> None:
    """Show what would run on this machine, or on the one that the flags describe, and whether it fits.

    Example: localgemma plan --all --device cuda --device-memory 24GiB
    """
    streams, hardware = standard_streams(), _hardware(options)
    if all_:
        overrides = make_overrides(options, resolve_draft(options))
        _print_all(plan_all(hardware, overrides, load_presets()), streams, json=options.json)
    else:
        _print_one(plan_model(options, hardware, places=value_places(ctx))[1], streams, json=options.json)


def _hardware(options: Options) -> Hardware:
    """This machine, with what the flags say instead of what it has."""
    sizes = parse_sizes(options.device_memory) if options.device_memory else None
    return probe_or_describe(
        options.device, sizes, parse_size(options.host_memory) if options.host_memory else None
    )


def _print_all(plans: Sequence[LoadPlan], streams: Streams, *, json: bool) -> None:
    if json:
        write_line(streams.stdout, {"plans": [each.to_dict() for each in plans]})
        return
    from localgemma_cli.render.console import SafeConsole
    from localgemma_cli.render.plan import NARROW, plans_list, plans_table

    console = SafeConsole(streams.stdout)
    console.print(plans_list(plans) if console.width < NARROW else plans_table(plans))


def _print_one(plan: LoadPlan, streams: Streams, *, json: bool) -> None:
    if json:
        write_line(streams.stdout, plan.to_dict())
        return
    from localgemma_cli.render.console import SafeConsole
    from localgemma_cli.render.plan import plan_text

    console = SafeConsole(streams.stdout)
    console.print(plan_text(plan, console.width))
