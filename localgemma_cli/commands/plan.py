"""`localgemma plan`: what would run here, and whether it fits, before any download."""

from typing import Annotated

import typer

from localgemma_cli import options
from localgemma_cli.commands.model_options import Choice, planned
from localgemma_cli.environment import standard_streams
from localgemma_cli.planning.hardware import parse_size, parse_sizes, probe_or_describe
from localgemma_cli.planning.plan import plan_all
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.json import write_line


def plan(
    model: options.Model = None,
    preset: options.Preset = None,
    all_: Annotated[bool, typer.Option("--all", help="Every model with every preset, as a table.")] = False,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    force: options.Force = False,
    offline: options.Offline = False,
    context: options.Context = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    compile: options.Compile = None,
    assistant: options.Assistant = None,
    device_memory: options.DeviceMemory = None,
    host_memory: options.HostMemory = None,
    json: options.Json = False,
) -> None:
    """Show what would run on this machine, or on the one that the flags describe, and whether it fits.

    Example: localgemma plan --all --device cuda --device-memory 24GiB
    """
    choice = Choice(
        model=model,
        preset=preset,
        adapter=adapter,
        revision=revision,
        offline=offline,
        force=force,
        device=device,
        dtype=dtype,
        quantization=quantization,
        attention=attention,
        compile=compile,
        assistant=assistant,
        context=context,
        device_memory=device_memory,
        host_memory=host_memory,
    )
    sizes = parse_sizes(device_memory) if device_memory else None
    hardware = probe_or_describe(device, sizes, parse_size(host_memory) if host_memory else None)
    streams = standard_streams()
    if all_:
        plans = plan_all(hardware, choice.overrides(), load_presets())
        if json:
            write_line(streams.stdout, {"plans": [each.to_dict() for each in plans]})
        else:
            from localgemma_cli.render.console import SafeConsole
            from localgemma_cli.render.plan import NARROW, plans_list, plans_table

            console = SafeConsole(streams.stdout)
            console.print(plans_list(plans) if console.width < NARROW else plans_table(plans))
        return
    _, one = planned(choice, hardware)
    if json:
        write_line(streams.stdout, one.to_dict())
    else:
        from localgemma_cli.render.console import SafeConsole
        from localgemma_cli.render.plan import plan_text

        console = SafeConsole(streams.stdout)
        console.print(plan_text(one, console.width))
