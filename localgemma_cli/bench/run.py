"""The rows of a benchmark: which jobs there are, with which weights, each measured in its own process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from localgemma_cli.bench.job import ChatWorkload, Engine, Job, Workload
from localgemma_cli.bench.report import Entry
from localgemma_cli.bench.subprocess_runner import run_job, run_write_checkpoint
from localgemma_cli.errors import UsageError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.catalog import demo_folder
from localgemma_cli.models.fetch import fetch_model
from localgemma_cli.models.resolve import Source
from localgemma_cli.options import LoadFormat
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

_PLENTY = 1 << 50  # bytes


@dataclass(frozen=True)
class BenchRequest:
    """What to measure; `gguf` are the files for llama.cpp."""

    workloads: tuple[Workload, ...]
    chat: ChatWorkload | None
    repeats: int
    seed: int
    load_format: LoadFormat
    dummy_folder: Path | None
    gguf: tuple[Path, ...]
    reference: bool


def check_request(request: BenchRequest, plans: Sequence[LoadPlan]) -> None:
    """Raise UsageError for lengths that give no rate or exceed the context, or options a GGUF file lacks."""
    _check_gguf(request, plans)
    if request.repeats < 1:
        raise UsageError("--repeats must be at least 1.", "Use 1 or more.")
    for workload in request.workloads:
        if workload.prompt_tokens < 1 or workload.new_tokens < 2:
            raise UsageError(
                "A rate needs a prompt of at least 1 token and an answer of at least 2.",
                "Use a larger --prompt-tokens or --new-tokens.",
            )
    longest = max(each.context for each in (*request.workloads, request.chat) if each)
    context = min(plan.context_length for plan in plans)
    if longest > context:
        raise UsageError(
            f"{longest} tokens exceed the context of {context}.",
            "Use fewer tokens, or a larger --context if the model supports it.",
        )


def _check_gguf(request: BenchRequest, plans: Sequence[LoadPlan]) -> None:
    if not any(plan.model.is_gguf for plan in plans):
        return
    if request.reference:
        raise UsageError(
            "--reference cannot be used with a GGUF file, which transformers does not run.",
            "Compare it with llama.cpp itself: --llama-cpp FILE",
        )
    if request.load_format is not LoadFormat.AUTO:
        raise UsageError("--load-format cannot be used with a GGUF file.", "Remove --load-format.")


@dataclass(frozen=True)
class BenchRun:
    source: Source
    hardware: Hardware
    overrides: Overrides
    request: BenchRequest

    def measure(self, plans: Sequence[LoadPlan], progress: ProgressSink) -> tuple[Entry, ...]:
        """Every row, one process after the other."""
        with self._weights(plans, progress) as weights:
            return tuple(self._entry(job, progress) for job in self._jobs(plans, weights))

    def _jobs(self, plans: Sequence[LoadPlan], weights: Path | None) -> Iterator[Job]:
        if self.request.reference:
            plain = replace(self.overrides, quantization=None, attention=None, compile=None)
            exact = make_plan(self.source.facts, "exact", self.hardware, plain, load_presets())
            yield self._job("transformers", exact, weights)
        for plan in plans:
            yield self._job("localgemma", plan, weights)
        for file in self.request.gguf:
            yield self._job("llama.cpp", plans[0], file)

    def _job(self, engine: Engine, plan: LoadPlan, weights: Path | None) -> Job:
        request = self.request
        own = weights if request.load_format is LoadFormat.AUTO and engine != "llama.cpp" else None
        return Job(
            engine,
            plan,
            weights,
            own or demo_folder(),
            request.workloads,
            request.chat,
            request.repeats,
            request.seed,
        )

    def _entry(self, job: Job, progress: ProgressSink) -> Entry:
        label = _label(job)
        progress(LoadProgress(f"measuring {label}"))
        first = None
        with self._home() as environment:
            if job.engine == "localgemma" and job.weights is not None:
                first = run_job(replace(job, workloads=()), environment).loaded
            result = run_job(job, environment)
        return Entry(label, job, result, first, self._estimates(job))

    @contextmanager
    def _home(self) -> Iterator[dict[str, str]]:
        """The environment of a row; with random weights an own home, so that its first load finds no copy."""
        if self.request.load_format is LoadFormat.AUTO:
            yield {}
            return
        with self._temporary() as folder:
            yield {"LOCALGEMMA_HOME": str(folder)}

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A temporary folder, on the disk of --dummy-folder because the user chose that for its size."""
        parent = self.request.dummy_folder.parent if self.request.dummy_folder else None
        if parent:
            parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="localgemma-bench-", dir=parent, ignore_cleanup_errors=True) as name:
            yield Path(name)

    def _estimates(self, job: Job) -> tuple[int, ...]:
        """For each workload the bytes that the plan expects with a context of just its tokens.

        The difference comes from plans with unlimited memory: a second plan for this machine could leave
        other layers on disk than the measured one.
        """
        if job.engine != "localgemma":
            return ()
        plan, presets = job.plan, load_presets()
        roomy = replace(self.hardware, device_memory_free=_PLENTY, host_memory_free=_PLENTY)
        overrides = replace(self.overrides, device_memory=None, host_memory=None)

        def total(context: int) -> int:
            asked = replace(overrides, context=context)
            return make_plan(plan.model, plan.preset, roomy, asked, presets).memory.total_bytes

        elsewhere = total(plan.context_length) - plan.memory.total_bytes
        return tuple(total(workload.context) - elsewhere for workload in job.workloads)

    @contextmanager
    def _weights(self, plans: Sequence[LoadPlan], progress: ProgressSink) -> Iterator[Path | None]:
        """A folder of weights, or None for random ones that the measuring process makes in memory."""
        request = self.request
        if request.load_format is LoadFormat.AUTO:
            yield fetch_model(self.source, progress)
        elif request.load_format is LoadFormat.DUMMY and not any(map(_reads_files, plans)):
            yield None
        else:
            with self._temporary() as temporary:
                folder = request.dummy_folder or temporary / "model"
                progress(LoadProgress("writing random weights"))
                run_write_checkpoint(self.source.facts.architecture, folder, request.seed)
                yield folder


def _label(job: Job) -> str:
    if job.engine == "llama.cpp" and job.weights is not None:
        return f"{job.engine} {job.weights.stem}"  # there may be several files
    return job.plan.preset if job.engine == "localgemma" else job.engine


def _reads_files(plan: LoadPlan) -> bool:
    """Whether the plan maps or streams weights from files, as on a CPU or with offloaded layers."""
    return plan.device == "cpu" or plan.streamed or plan.resident_layers is not None
