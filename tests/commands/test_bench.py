"""`localgemma bench` as a user runs it: figures are there, and agree; no test asks how good."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.program import Program
from support.schemas import validate

from localgemma_cli.bench.job import (
    AnswerResult,
    ChatResult,
    Engine,
    Job,
    JobResult,
    LoadResult,
    Peaks,
    Workload,
)
from localgemma_cli.bench.machine import describe_machine, name_features
from localgemma_cli.bench.report import AnswerFigures, Entry, Row, busy_warning, first_difference, make_rows
from localgemma_cli.bench.table import make_table
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import GIB, describe_hardware
from localgemma_cli.planning.host import cpu_flags
from localgemma_cli.planning.memory import RUNTIME_BYTES, kv_cache_bytes
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

BANDWIDTH = 20e9
WORKLOAD = Workload(64, 6)


def plan_on(device: str = "cpu", preset: str = "exact") -> LoadPlan:
    facts = resolve("2b", revision=None, offline=True).facts
    hardware = describe_hardware(device, 24 * GIB, 64 * GIB)
    return make_plan(facts, preset, hardware, Overrides(dtype="bfloat16"), load_presets())


def entry(engine: Engine = "localgemma", device: str = "cpu", **changes: object) -> Entry:
    peaks = Peaks(6_000_000_000, 5_500_000_000 if device == "cuda" else None)
    answered = AnswerResult(WORKLOAD, 0.5, 4.0, (7, 8, 9, 7, 8, 9), peaks, (0.5, 0.25, 0.125, 1.0, 1.0, 1.0))
    outcome = JobResult(
        LoadResult(2.0, Peaks(5_000_000_000, None), 5_300_000_000),
        read_bytes=5_200_000_000,
        answered=(replace(answered, **changes),),
        stream_seconds_per_token=5e-6,
    )
    job = Job(engine, plan_on(device), Path("weights"), Path("tokenizer"), (WORKLOAD,))
    return Entry(engine, job, outcome, estimates=(6_000_000_000,) if engine == "localgemma" else ())


def figures(*entries: Entry) -> list[AnswerFigures]:
    return [row.answers[0] for row in make_rows(entries, BANDWIDTH)]


# The figures


def test_rates_and_shares_follow_from_what_was_measured() -> None:
    (each,) = figures(entry())
    architecture = plan_on().model.architecture
    assert each.prefill_tokens_per_second == 128
    assert each.kv_bytes_per_token == kv_cache_bytes(architecture, "bfloat16", "sliding", 67)
    assert each.bytes_per_second == (5_200_000_000 + each.kv_bytes_per_token) * 4
    assert each.bandwidth_share == each.bytes_per_second / BANDWIDTH
    assert each.above_weights_bytes == 800_000_000
    assert each.estimate_share == 1
    (row,) = make_rows([entry()], BANDWIDTH)
    assert row.step_share == pytest.approx(5e-6 * 4)


def test_a_cache_in_8_bits_is_read_as_half_of_bfloat16() -> None:
    plain, small = entry(), entry()
    small = replace(small, job=replace(small.job, plan=plan_on(preset="memory")))
    full, half = (each.kv_bytes_per_token for each in figures(plain, small))
    assert half == full // 2


def test_ratios_are_against_the_first_row() -> None:
    slow, fast = figures(entry(), entry(first_token_seconds=0.25, decode_tokens_per_second=6.0))
    assert (slow.decode_ratio, slow.first_token_ratio) == (1, 1)
    assert (fast.decode_ratio, fast.first_token_ratio) == (1.5, 0.5)


def test_tokens_are_compared_with_the_reference_and_with_nothing_else() -> None:
    reference = entry("transformers")
    same, other = figures(reference, entry(), entry(token_ids=(7, 8, 1, 7, 8, 9)))[1:]
    assert (same.tokens_equal, same.first_difference) == (True, None)
    assert (other.tokens_equal, other.first_difference, other.reference_margin) == (False, 2, 0.125)
    assert figures(reference)[0].tokens_equal is None
    assert figures(entry(), entry())[1].tokens_equal is None
    assert figures(reference, entry("llama.cpp"))[1].tokens_equal is None


@pytest.mark.parametrize(
    ("ours", "theirs", "place"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1,), (1, 2), 1), ((1, 2, 3), (1, 2), 2), ((), (), None)],
)
def test_the_first_difference(ours: tuple[int, ...], theirs: tuple[int, ...], place: int | None) -> None:
    assert first_difference(ours, theirs) == place


def test_a_gpus_own_peak_is_held_against_the_estimate_without_the_runtime() -> None:
    (each,) = figures(entry(device="cuda"))
    assert each.estimate_bytes == 6_000_000_000 - RUNTIME_BYTES["cuda"]
    assert each.estimate_share == 5_500_000_000 / each.estimate_bytes


def test_the_first_of_two_loads_is_told_apart_and_the_higher_peak_counts() -> None:
    twice = replace(entry(), first_load=LoadResult(40.0, Peaks(7_000_000_000, None), 5_300_000_000))
    once, both = (row.load for row in make_rows([entry(), twice], BANDWIDTH))
    assert (once.first_seconds, once.second_seconds) == (2, None)
    assert (both.first_seconds, both.second_seconds) == (40, 2)
    assert both.peak_host_bytes == 7_000_000_000
    assert both.peak_ratio == 1.4


# The table


def printed(measured: tuple[Row, ...]) -> str:
    from localgemma_cli.render.console import SafeConsole  # the command's own, which reads no markup

    out = io.StringIO()
    SafeConsole(out, 100).print(make_table(measured, BANDWIDTH))
    return out.getvalue()


def test_six_rows_fit_in_100_columns_with_nothing_left_out() -> None:
    chat = ChatResult(464, 400, 0.5, 10.0)
    mine = entry(token_ids=(7, 8, 1, 7, 8, 9))
    with_chat = replace(mine, outcome=replace(mine.outcome, chatted=chat))
    labels = ("exact", "speed", "memory", "memory_extreme")
    middle = [replace(with_chat, label=label) for label in labels]
    text = printed(make_rows([entry("transformers"), *middle, entry("llama.cpp")], BANDWIDTH))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for word in ("transformers", *labels, "llama.cpp", "turn 6 of a chat", "up to 2", "0.125"):
        assert word in text
    assert "device" not in text  # a CPU has no memory of its own
    assert "[bold]" not in text


def test_rows_that_other_programs_disturbed_are_named() -> None:
    rows = make_rows([entry(), entry("transformers"), entry("llama.cpp")], BANDWIDTH)
    shares = (0.004, 0.123, 0.31)
    disturbed = [replace(row, others_share=share) for row, share in zip(rows, shares, strict=True)]
    warning = busy_warning(disturbed)
    assert warning is not None
    assert "transformers 12%, llama.cpp 31%" in warning
    assert "localgemma" not in warning
    assert busy_warning(disturbed[:1]) is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("fpu sse2 avx avx2 fma", ("AVX2",)),
        ("avx2 avx_vnni fma", ("AVX2", "AVX-VNNI")),
        ("avx2 avx512f avx512_bf16 amx_bf16", ("AVX2", "AVX-512", "AVX512-BF16", "AMX")),
        ("fp asimd asimddp i8mm bf16", ("DotProd", "I8MM", "BF16")),
        ("", ()),
    ],
)
def test_features_of_a_processor_are_named_as_people_name_them(flags: str, named: tuple[str, ...]) -> None:
    assert name_features(frozenset(flags.split())) == named


def test_the_heading_names_the_processor_and_its_features() -> None:
    machine = describe_machine(describe_hardware("cpu", 24 * GIB, 64 * GIB), BANDWIDTH)
    named = replace(machine, name="AMD EPYC", features=("AVX2", "AVX-512"), cores=2)
    assert named.line().startswith("cpu: AMD EPYC (AVX2, AVX-512), 2 cores, 25.8 GB, 20.0 GB/s\n")
    assert replace(named, features=()).line().startswith("cpu: AMD EPYC, 2 cores")
    assert machine.features == name_features(cpu_flags() or frozenset())
    assert describe_machine(describe_hardware("cuda", 24 * GIB, None), BANDWIDTH).features == ()


# The program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's own."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict:
    (folder / "temporary").mkdir()
    done = Program(folder).with_environment(TMPDIR=str(folder / "temporary"))(
        *("bench", "-m", "demo", "--preset", "exact", "--preset", "memory", "--device", "cpu"),
        *("--dtype", "float32", "--load-format", "dummy", "--reference", "--repeats", "1", "--json"),
        *("--prompt-tokens", "16", "--prompt-tokens", "80", "--new-tokens", "5", "--chat-tokens", "300"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_preset_has_a_row_after_the_reference(report: dict) -> None:
    assert [row["label"] for row in report["rows"]] == ["transformers", "exact", "memory"]
    assert report["rows"][0]["plan"] is None
    for row in report["rows"][1:]:
        validate(row["plan"], "plan")
        assert row["plan"]["preset"] == row["label"]


def test_the_report_says_what_it_was_measured_on(report: dict) -> None:
    machine = report["machine"]
    assert machine["device"] == "cpu"
    assert machine["bandwidth_bytes_per_second"] > 0
    assert {"localgemma-cli", "torch", "transformers"} <= set(machine["versions"])
    assert "--load-format dummy" in report["command"]
    assert report["load_format"] == "dummy"


def test_all_figures_are_there_and_positive(report: dict) -> None:
    for row in report["rows"]:
        assert [each["prompt_tokens"] for each in row["answers"]] == [16, 80]
        for answer in row["answers"]:
            for name in (
                *("first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"),
                *("read_bytes_per_token", "kv_bytes_per_token", "bandwidth_share", "peak_host_bytes"),
            ):
                assert answer[name] > 0, name
        assert row["load"]["first_seconds"] > 0
        assert 0 <= row["others_share"] <= 1
        assert row["load"]["peak_host_bytes"] > row["load"]["weights_bytes"]
    for row in report["rows"][1:]:
        assert row["load"]["second_seconds"] > 0
        assert row["stream_seconds_per_token"] > 0
        assert row["chat"]["prompt_tokens"] > row["chat"]["cached_prompt_tokens"] > 250
        assert all(answer["estimate_bytes"] > 0 for answer in row["answers"])


def test_exact_is_the_reference_and_four_bits_read_less(report: dict) -> None:
    reference, exact, memory = (row["answers"] for row in report["rows"])
    assert all(answer["tokens_equal"] for answer in exact)
    assert exact[0]["read_bytes_per_token"] == pytest.approx(reference[0]["read_bytes_per_token"], rel=0.01)
    assert memory[0]["read_bytes_per_token"] < reference[0]["read_bytes_per_token"]


def assert_nothing_is_left(folder: Path) -> None:
    assert not [each for each in (folder / "temporary").iterdir() if each.name.startswith("localgemma")]
    assert not list((folder / "home").rglob("*.safetensors"))


def test_nothing_stays_behind(report: dict, folder: Path) -> None:
    """`memory` reads files: the random weights were written to a temporary folder."""
    assert report["rows"][2]["load"]["second_seconds"] > 0
    assert_nothing_is_left(folder)


def test_a_folder_that_was_named_stays_and_the_table_is_printed(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    (tmp_path / "temporary").mkdir()
    done = program.with_environment(TMPDIR=str(tmp_path / "temporary"))(
        *("bench", "-m", "demo", "--preset", "memory", "--load-format", "dummy-file", "--device", "cpu"),
        *("--repeats", "1", "--prompt-tokens", "8", "--new-tokens", "2", "--dummy-folder", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    assert "decode, tok/s" in done.stdout
    assert "\x1b" not in done.stdout
    assert_nothing_is_left(tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert list(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--prompt-tokens", "1020"], 2, "exceed the context of 1024"),
        (["--new-tokens", "1"], 2, "at least 2"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--chat-tokens", "4000"], 2, "exceed the context of 1024"),
        (["--preset", "exakt"], 2, "Unknown preset: 'exakt'"),
        (["--load-format", "random"], 2, "random"),
        (["--device-memory", "1MiB", "--preset", "exact"], 5, "needs"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else None,
)
def test_what_cannot_be_measured_is_said_before_anything_runs(
    program: Program, words: list[str], code: int, said: str
) -> None:
    done = program("bench", "-m", "demo", "--device", "cpu", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""


def test_llama_cpp_is_asked_for_by_name(program: Program) -> None:
    from importlib.util import find_spec

    done = program("bench", "-m", "demo", "--llama-cpp", "missing.gguf")
    if find_spec("xllamacpp") is None:
        assert done.returncode == 2
        assert "pip install" in done.stderr
    else:
        assert done.returncode == 4
        assert "missing.gguf" in done.stderr


def test_every_gguf_file_is_a_row_of_its_own(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localgemma_cli.bench import run

    monkeypatch.setattr(run, "run_job", lambda job, _: entry(job.engine).outcome)
    files = tuple(tmp_path / name for name in ("gemma-Q4_0.gguf", "gemma-BF16.gguf"))
    request = run.BenchRequest(
        (WORKLOAD,), None, 1, 0, run.LoadFormat.DUMMY_FILE, tmp_path / "model", files, reference=False
    )
    source = resolve("demo", revision=None, offline=True)
    hardware = describe_hardware("cpu", 24 * GIB, 64 * GIB)
    entries = run.BenchRun(source, hardware, Overrides(), request).measure([plan_on()], lambda _: None)
    assert [each.label for each in entries] == ["exact", "llama.cpp gemma-Q4_0", "llama.cpp gemma-BF16"]
    assert [each.job.weights for each in entries[1:]] == list(files)


def test_help_has_an_example_and_a_config_files_preset_is_one_row(program: Program) -> None:
    done = program("bench", "--help")
    assert done.returncode == 0
    assert "localgemma bench" in done.stdout.split("xample", 1)[1]
    (program.config / "config.toml").write_text('preset = "exakt"\n')
    assert "Unknown preset: 'exakt'" in program("bench", "-m", "demo").stderr
