"""Turn measurements into the figures of a report: rates, shares and ratios. Pure functions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from localgemma_cli.bench.job import AnswerResult, ChatResult, Job, JobResult, LoadResult
from localgemma_cli.planning.memory import RUNTIME_BYTES, kv_cache_bytes
from localgemma_cli.types import DTYPE_BYTES, Dtype

BUSY_SHARE = 0.05  # of the processor; on two cores it cost a tenth of the decoding rate


@dataclass(frozen=True)
class Entry:
    """One measured row; `estimates` are the plan's bytes for each workload, empty for other engines."""

    label: str
    job: Job
    outcome: JobResult
    first_load: LoadResult | None = None
    estimates: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoadFigures:
    """Seconds and bytes; without a second load the only one counts as the first."""

    first_seconds: float
    second_seconds: float | None
    peak_host_bytes: int
    peak_device_bytes: int | None
    weights_bytes: int
    peak_ratio: float


@dataclass(frozen=True)
class AnswerFigures:
    """One workload; every `_ratio` compares with the first row.

    The estimate is for the tokens of this workload, on CUDA without the runtime's memory, which PyTorch's
    peak does not include either. `first_difference` counts tokens from 0.
    """

    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    first_token_ratio: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_ratio: float
    read_bytes_per_token: int
    kv_bytes_per_token: int
    bytes_per_second: float
    bandwidth_share: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    above_weights_bytes: int
    estimate_bytes: int | None
    estimate_share: float | None
    tokens_equal: bool | None
    first_difference: int | None
    reference_margin: float | None


@dataclass(frozen=True)
class ChatFigures:
    prompt_tokens: int
    cached_prompt_tokens: int
    first_token_seconds: float
    full_prefill_seconds: float
    first_token_share: float


@dataclass(frozen=True)
class Row:
    """One line of the report.

    `step_share`: the cost of turning an id into text, as a share of the first workload's decode step.
    `others_share`: of the processor's time during the answers, what other programs used; the highest of them.
    """

    label: str
    plan: dict[str, object] | None
    load: LoadFigures
    answers: tuple[AnswerFigures, ...]
    chat: ChatFigures | None
    stream_seconds_per_token: float | None
    step_share: float | None
    others_share: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def make_rows(entries: Sequence[Entry], bandwidth: float) -> tuple[Row, ...]:
    return tuple(_row(entry, entries[0], bandwidth) for entry in entries)


def busy_warning(rows: Sequence[Row]) -> str | None:
    """What to know about rows that were measured while other programs used the processor."""
    busy = [f"{row.label} {row.others_share:.0%}" for row in rows if row.others_share > BUSY_SHARE]
    if not busy:
        return None
    return (
        f"Other programs used the processor during these rows: {', '.join(busy)}."
        " Their figures may be too low; run again on an idle machine."
    )


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The index of the first different token, or of the shorter answer's end; None if they are equal."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return place
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _row(entry: Entry, first: Entry, bandwidth: float) -> Row:
    outcome = entry.outcome
    answers = tuple(_answer(entry, first, place, bandwidth) for place in range(len(outcome.answered)))
    stream = outcome.stream_seconds_per_token
    return Row(
        label=entry.label,
        plan=entry.job.plan.to_dict() if entry.job.engine == "localgemma" else None,
        load=_load(entry, first),
        answers=answers,
        chat=_chat(outcome.chatted) if outcome.chatted else None,
        stream_seconds_per_token=stream,
        step_share=None if stream is None else stream * answers[0].decode_tokens_per_second,
        others_share=max((each.others_share for each in outcome.answered), default=0.0),
    )


def _load(entry: Entry, first: Entry) -> LoadFigures:
    """The peak is the higher one of the two loads, because a machine must manage the first one as well."""
    loads = [load for load in (entry.first_load, entry.outcome.loaded) if load]
    devices = [load.peaks.device_bytes for load in loads if load.peaks.device_bytes is not None]
    peak = _load_peak(entry)
    return LoadFigures(
        first_seconds=loads[0].seconds,
        second_seconds=loads[1].seconds if len(loads) > 1 else None,
        peak_host_bytes=peak,
        peak_device_bytes=max(devices, default=None),
        weights_bytes=entry.outcome.loaded.weights_bytes,
        peak_ratio=peak / _load_peak(first),
    )


def _load_peak(entry: Entry) -> int:
    loads = [load for load in (entry.first_load, entry.outcome.loaded) if load]
    return max(load.peaks.host_bytes for load in loads)


def _answer(entry: Entry, first: Entry, place: int, bandwidth: float) -> AnswerFigures:
    answered, base = entry.outcome.answered[place], first.outcome.answered[place]
    read, kv = entry.outcome.read_bytes, _kv_bytes(entry.job, answered)
    rate = answered.decode_tokens_per_second
    peaks, estimate = answered.peaks, _estimate(entry, place)
    peak = peaks.host_bytes if peaks.device_bytes is None else peaks.device_bytes
    difference = _difference(entry, first, place)
    return AnswerFigures(
        prompt_tokens=answered.workload.prompt_tokens,
        new_tokens=answered.workload.new_tokens,
        first_token_seconds=answered.first_token_seconds,
        first_token_ratio=answered.first_token_seconds / base.first_token_seconds,
        prefill_tokens_per_second=answered.workload.prompt_tokens / answered.first_token_seconds,
        decode_tokens_per_second=rate,
        decode_ratio=rate / base.decode_tokens_per_second,
        read_bytes_per_token=read,
        kv_bytes_per_token=kv,
        bytes_per_second=(read + kv) * rate,
        bandwidth_share=(read + kv) * rate / bandwidth,
        peak_host_bytes=peaks.host_bytes,
        peak_device_bytes=peaks.device_bytes,
        above_weights_bytes=peak - read,
        estimate_bytes=estimate,
        estimate_share=None if estimate is None else peak / estimate,
        tokens_equal=None if difference is None else difference.place is None,
        first_difference=difference.place if difference else None,
        reference_margin=difference.margin if difference else None,
    )


@dataclass(frozen=True)
class _Difference:
    """The index of the first different token, and the margin of the reference's logit there."""

    place: int | None
    margin: float | None


def _difference(entry: Entry, first: Entry, place: int) -> _Difference | None:
    """None without a reference, or if the entry has other weights."""
    if first.job.engine != "transformers" or entry.job.engine != "localgemma":
        return None
    reference = first.outcome.answered[place]
    found = first_difference(entry.outcome.answered[place].token_ids, reference.token_ids)
    known = found is not None and found < len(reference.margins)
    return _Difference(found, reference.margins[found] if found is not None and known else None)


def _kv_bytes(job: Job, answered: AnswerResult) -> int:
    """Bytes that attention reads for a token in mid-answer; a sliding layer reads its window."""
    middle = answered.workload.prompt_tokens + answered.workload.new_tokens // 2
    by_llamacpp = job.engine == "llama.cpp" or job.plan.quantization == "gguf"
    dtype: Dtype = "float16" if by_llamacpp else job.plan.dtype
    size = kv_cache_bytes(job.plan.model.architecture, dtype, "sliding", middle)
    in_bytes = job.engine == "localgemma" and job.plan.cache in ("int8", "q8_0")
    return size // DTYPE_BYTES[dtype] if in_bytes else size  # without the scales


def _estimate(entry: Entry, place: int) -> int | None:
    if not entry.estimates:
        return None
    device = entry.job.plan.device
    return entry.estimates[place] - (RUNTIME_BYTES[device] if device == "cuda" else 0)


def _chat(chatted: ChatResult) -> ChatFigures:
    return ChatFigures(
        prompt_tokens=chatted.prompt_tokens,
        cached_prompt_tokens=chatted.cached_prompt_tokens,
        first_token_seconds=chatted.first_token_seconds,
        full_prefill_seconds=chatted.full_prefill_seconds,
        first_token_share=chatted.first_token_seconds / chatted.full_prefill_seconds,
    )
