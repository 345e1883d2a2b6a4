"""`localgemma bench`: measure what this machine does with a model."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from localgemma_cli.bench.job import ChatWorkload, Workload
from localgemma_cli.bench.machine import Machine, describe_machine
from localgemma_cli.bench.report import Row, busy_warning, make_rows
from localgemma_cli.bench.run import BenchRequest, BenchRun, check_request
from localgemma_cli.bench.subprocess_runner import run_bandwidth
from localgemma_cli.command_options import takes_options
from localgemma_cli.environment import Streams, expand_home, standard_streams
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.events import LoadProgress
from localgemma_cli.models.hub.consent import agree_to_download
from localgemma_cli.models.resolve import Source
from localgemma_cli.options import LoadFormat, Options
from localgemma_cli.planning.hardware import Hardware, probe
from localgemma_cli.planning.model_options import find_source, make_overrides
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan, require_fits
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.json import SCHEMA, write_line
from localgemma_cli.render.progress import show_progress

_LENGTH = 64  # tokens, of a prompt and of an answer
_CHAT_ANSWER = 32  # tokens; short, because only the last turn's question is timed
_COLUMNS = 100  # of a report that no terminal shows


@takes_options("bench")
def bench(options: Options) -> None:
    """Measure how fast a model loads, reads and answers here, and how much memory it uses.

    Example: localgemma bench -m 2b --preset exact --preset memory --load-format dummy --reference
    """
    streams, hardware = standard_streams(), probe(options.device)
    request, overrides = _request(options), make_overrides(options)
    source = find_source(options, hardware, overrides)
    if source.facts.adapter is not None:
        raise UsageError(
            "bench does not support adapters.", f"Name the base model: localgemma bench -m {source.facts.id}"
        )
    plans = _plans(source, options.presets or [None], hardware, overrides)
    check_request(request, plans)
    if request.load_format is LoadFormat.AUTO:
        agree_to_download(source, streams, named=options.model is not None, yes=options.yes)
    with show_progress(streams.stderr, quiet=options.quiet) as progress:
        entries = BenchRun(source, hardware, overrides, request).measure(plans, progress)
        progress(LoadProgress("measuring the memory bandwidth"))
        bandwidth = run_bandwidth(hardware.device)
    measured, machine = make_rows(entries, bandwidth), describe_machine(hardware, bandwidth)
    show = _show_json if options.json else _show_table
    show(measured, machine, source, request, streams)


def _request(options: Options) -> BenchRequest:
    prompts, answers = options.prompt_tokens or [_LENGTH], options.new_tokens or [_LENGTH]
    chat = ChatWorkload(options.chat_tokens, prompts[0], _CHAT_ANSWER) if options.chat_tokens else None
    return BenchRequest(
        workloads=tuple(Workload(prompt, new) for prompt, new in product(prompts, answers)),
        chat=chat,
        repeats=options.repeats,
        seed=options.seed or 0,
        load_format=options.load_format,
        dummy_folder=expand_home(options.dummy_folder) if options.dummy_folder else None,
        gguf=tuple(map(_gguf, options.llama_cpp or ())),
        reference=options.reference,
    )


def _plans(
    source: Source, presets: Sequence[str | None], hardware: Hardware, overrides: Overrides
) -> tuple[LoadPlan, ...]:
    known = load_presets()
    plans = tuple(make_plan(source.facts, preset, hardware, overrides, known) for preset in presets)
    for plan in plans:
        require_fits(plan)
    return plans


def _gguf(file: str) -> Path:
    if find_spec("xllamacpp") is None:
        raise UsageError(
            "--llama-cpp needs the package xllamacpp, which is not installed.",
            'Install it: pip install "localgemma-cli[gguf]"',
        )
    path = expand_home(file)
    if not path.is_file():
        raise NotFoundError(f"GGUF file not found: {path}.", "Check the path.")
    return path


def _command() -> str:
    return shlex.join(["localgemma", *sys.argv[1:]])


def _show_json(
    measured: Sequence[Row], machine: Machine, source: Source, request: BenchRequest, streams: Streams
) -> None:
    report = {
        "schema": SCHEMA,
        "command": _command(),
        "machine": asdict(machine),
        "model": source.facts.id,
        "load_format": request.load_format.value,
        "repeats": request.repeats,
        "seed": request.seed,
        "rows": [row.to_dict() for row in measured],
    }
    write_line(streams.stdout, report)


def _show_table(
    measured: Sequence[Row], machine: Machine, source: Source, request: BenchRequest, streams: Streams
) -> None:
    from localgemma_cli.bench.table import make_table
    from localgemma_cli.render.console import SafeConsole

    streams.show(_command())
    streams.show(f"{source.facts.name} ({request.load_format} weights) on {machine.line()}")
    width = None if streams.stdout.isatty() else _COLUMNS
    SafeConsole(streams.stdout, width).print(make_table(measured, machine.bandwidth_bytes_per_second))
    if warning := busy_warning(measured):
        streams.show(warning)
