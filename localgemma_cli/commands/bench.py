"""`localgemma bench`: what this machine does with a model, measured."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from localgemma_cli import options
from localgemma_cli.bench import subprocess_runner as apart
from localgemma_cli.bench.job import ChatWorkload, Engine, Job, Workload
from localgemma_cli.bench.machine import Machine, describe_machine
from localgemma_cli.bench.report import Entry, Row, rows
from localgemma_cli.commands.consent import agree_to_download
from localgemma_cli.commands.model_options import Choice, source_of
from localgemma_cli.environment import Streams, expand_home, standard_streams
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.catalog import demo_folder
from localgemma_cli.models.fetch import fetch_model
from localgemma_cli.models.resolve import Source
from localgemma_cli.options import LoadFormat
from localgemma_cli.planning.hardware import Hardware, probe
from localgemma_cli.planning.plan import LoadPlan, make_plan, require_fits
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.json import SCHEMA, write_line
from localgemma_cli.render.progress import show_progress

_PLENTY = 1 << 50  # bytes
_CHAT_ANSWER = 32  # tokens; short, because only the last turn's question is timed


def bench(
    model: options.Model = None,
    preset: options.Presets = None,
    load_format: options.LoadFormatOption = LoadFormat.AUTO,
    dummy_folder: options.DummyFolder = None,
    prompt_tokens: options.PromptTokens = None,
    new_tokens: options.NewTokens = None,
    chat_tokens: options.ChatTokens = None,
    repeats: options.Repeats = 3,
    reference: options.Reference = False,
    llama_cpp: options.LlamaCpp = None,
    seed: options.Seed = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    context: options.Context = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    compile: options.Compile = None,
    device_memory: options.DeviceMemory = None,
    host_memory: options.HostMemory = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast a model loads, reads and answers here, and how much memory it takes.

    Example: localgemma bench -m 2b --preset exact --preset memory --load-format dummy --reference
    """
    streams = standard_streams()
    choice = Choice(
        model=model,
        revision=revision,
        offline=offline,
        device=device,
        dtype=dtype,
        quantization=quantization,
        attention=attention,
        compile=compile,
        context=context,
        device_memory=device_memory,
        host_memory=host_memory,
    )
    hardware = probe(device)
    lengths = product(prompt_tokens or [64], new_tokens or [64])
    wanted = Wanted(
        workloads=tuple(Workload(prompt, new) for prompt, new in lengths),
        chat=ChatWorkload(chat_tokens, (prompt_tokens or [64])[0], _CHAT_ANSWER) if chat_tokens else None,
        repeats=repeats,
        seed=seed or 0,
        load_format=load_format,
        dummy_folder=expand_home(dummy_folder) if dummy_folder else None,
        gguf=tuple(map(_gguf, llama_cpp or ())),
    )
    source = source_of(choice, hardware)
    if source.facts.adapter is not None:
        raise UsageError(
            "bench measures a model without an adapter.",
            f"Name its base: localgemma bench -m {source.facts.id}",
        )
    plans = _plans(source, preset or [None], hardware, choice)
    _check(wanted, plans)
    if load_format is LoadFormat.AUTO:
        agree_to_download(source, streams, named=model is not None, yes=yes)
    bench = _Bench(source, hardware, choice, wanted)
    with show_progress(streams.stderr, quiet=quiet) as progress:
        entries = bench.entries(plans, reference, progress)
        progress(LoadProgress("measuring the memory's bandwidth"))
        bandwidth = apart.bandwidth(hardware.device)
    _show(rows(entries, bandwidth), describe_machine(hardware, bandwidth), source, wanted, json, streams)


@dataclass(frozen=True)
class Wanted:
    """What the user asked to have measured."""

    workloads: tuple[Workload, ...]
    chat: ChatWorkload | None
    repeats: int
    seed: int
    load_format: LoadFormat
    dummy_folder: Path | None
    gguf: tuple[Path, ...]


@dataclass(frozen=True)
class _Bench:
    source: Source
    hardware: Hardware
    choice: Choice
    wanted: Wanted

    def entries(
        self, plans: Sequence[LoadPlan], reference: bool, progress: ProgressSink
    ) -> tuple[Entry, ...]:
        """Every row, one process after the other."""
        with self._weights(plans, progress) as weights:
            return tuple(self._entry(job, progress) for job in self._jobs(plans, reference, weights))

    def _jobs(self, plans: Sequence[LoadPlan], reference: bool, weights: Path | None) -> Iterator[Job]:
        if reference:
            exact = make_plan(
                self.source.facts,
                "exact",
                self.hardware,
                replace(self.choice.overrides(), quantization=None, attention=None, compile=None),
                load_presets(),
            )
            yield self._job("transformers", exact, weights)
        for plan in plans:
            yield self._job("localgemma", plan, weights)
        for file in self.wanted.gguf:
            yield self._job("llama.cpp", plans[0], file)

    def _job(self, engine: Engine, plan: LoadPlan, weights: Path | None) -> Job:
        own = weights if self.wanted.load_format is LoadFormat.AUTO and engine != "llama.cpp" else None
        wanted = self.wanted
        return Job(
            engine,
            plan,
            weights,
            own or demo_folder(),
            wanted.workloads,
            wanted.chat,
            wanted.repeats,
            wanted.seed,
        )

    def _entry(self, job: Job, progress: ProgressSink) -> Entry:
        label = _label(job)
        progress(LoadProgress(f"measuring {label}"))
        first = None
        with self._home() as environment:
            if job.engine == "localgemma" and job.weights is not None:
                first = apart.measure(replace(job, workloads=()), environment).loaded
            outcome = apart.measure(job, environment)
        return Entry(label, job, outcome, first, self._estimates(job))

    @contextmanager
    def _home(self) -> Iterator[dict[str, str]]:
        """For random weights a home for each row, so that a first load has nothing kept to fall back on."""
        if self.wanted.load_format is LoadFormat.AUTO:
            yield {}
            return
        with self._temporary() as folder:
            yield {"LOCALGEMMA_HOME": str(folder)}

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """On the disk of --dummy-folder, which was chosen for its size."""
        parent = self.wanted.dummy_folder.parent if self.wanted.dummy_folder else None
        if parent:
            parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="localgemma-bench-", dir=parent, ignore_cleanup_errors=True) as name:
            yield Path(name)

    def _estimates(self, job: Job) -> tuple[int, ...]:
        """The plan's total, less what a context of just as many tokens as a workload has leaves unused.

        That is told where all has room: a plan of its own would leave other layers on disk than this one.
        """
        if job.engine != "localgemma":
            return ()
        plan, presets = job.plan, load_presets()
        roomy = replace(self.hardware, device_memory_free=_PLENTY, host_memory_free=_PLENTY)
        overrides = replace(self.choice.overrides(), device_memory=None, host_memory=None)

        def needed(context: int) -> int:
            asked = replace(overrides, context=context)
            return make_plan(plan.model, plan.preset, roomy, asked, presets).memory.total_bytes

        elsewhere = needed(plan.context_length) - plan.memory.total_bytes
        return tuple(needed(workload.context) - elsewhere for workload in job.workloads)

    @contextmanager
    def _weights(self, plans: Sequence[LoadPlan], progress: ProgressSink) -> Iterator[Path | None]:
        """A folder of weights, or None for random ones that are made in memory."""
        wanted = self.wanted
        if wanted.load_format is LoadFormat.AUTO:
            yield fetch_model(self.source, progress)
        elif wanted.load_format is LoadFormat.DUMMY and not any(map(_reads_files, plans)):
            yield None
        else:
            with self._temporary() as temporary:
                folder = wanted.dummy_folder or temporary / "model"
                progress(LoadProgress("writing random weights"))
                apart.write_checkpoint(self.source.facts.architecture, folder, wanted.seed)
                yield folder


def _label(job: Job) -> str:
    if job.engine == "llama.cpp" and job.weights is not None:
        return f"{job.engine} {job.weights.stem}"  # there may be several files
    return job.plan.preset if job.engine == "localgemma" else job.engine


def _reads_files(plan: LoadPlan) -> bool:
    """On a CPU the weights are their file, mapped; kept copies and layers that wait come from files."""
    return plan.device == "cpu" or plan.streamed or plan.resident_layers is not None


def _plans(
    source: Source, presets: Sequence[str | None], hardware: Hardware, choice: Choice
) -> tuple[LoadPlan, ...]:
    known, overrides = load_presets(), choice.overrides()
    plans = tuple(make_plan(source.facts, preset, hardware, overrides, known) for preset in presets)
    for plan in plans:
        require_fits(plan)
    return plans


def _check(wanted: Wanted, plans: Sequence[LoadPlan]) -> None:
    """UsageError for lengths that measure nothing, or do not fit in the context."""
    if wanted.repeats < 1:
        raise UsageError("--repeats is out of range.", "Give a value of 1 or more.")
    for workload in wanted.workloads:
        if workload.prompt_tokens < 1 or workload.new_tokens < 2:
            raise UsageError(
                "A rate needs a prompt of at least 1 token and an answer of at least 2.",
                "Give a larger --prompt-tokens or --new-tokens.",
            )
    longest = max(each.context for each in (*wanted.workloads, wanted.chat) if each)
    context = min(plan.context_length for plan in plans)
    if longest > context:
        raise UsageError(
            f"{longest} tokens do not fit in a context of {context}.",
            "Take fewer, or a larger --context where the model has one.",
        )


def _gguf(file: str) -> Path:
    if find_spec("llama_cpp") is None:
        raise UsageError(
            "--llama-cpp needs llama-cpp-python, which is not installed.",
            'Install it: pip install "localgemma-cli[bench]"',
        )
    path = expand_home(file)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", "Give the path of a GGUF file.")
    return path


def _show(
    measured: Sequence[Row], machine: Machine, source: Source, wanted: Wanted, json: bool, streams: Streams
) -> None:
    command = shlex.join(["localgemma", *sys.argv[1:]])
    if json:
        report = {
            "schema": SCHEMA,
            "command": command,
            "machine": asdict(machine),
            "model": source.facts.id,
            "load_format": wanted.load_format.value,
            "repeats": wanted.repeats,
            "seed": wanted.seed,
            "rows": [row.to_dict() for row in measured],
        }
        write_line(streams.stdout, report)
        return
    from localgemma_cli.bench.table import table
    from localgemma_cli.render.console import SafeConsole

    facts = source.facts
    streams.show(command)
    streams.show(f"{facts.name} ({wanted.load_format} weights) on {machine.line()}")
    width = 100 if not streams.stdout.isatty() else None
    SafeConsole(streams.stdout, width).print(table(measured, machine.bandwidth_bytes_per_second))
