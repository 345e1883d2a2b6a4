"""Start-up is a feature: what is imported for what, and how long `--help` takes."""

import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.kept import KEEP, keeping_program
from support.program import Program

HEAVY = ("torch", "transformers", "prompt_toolkit", "accelerate", "bitsandbytes", "huggingface_hub")
SERVERS = ("starlette", "uvicorn", "llguidance", "pydantic", "asyncio")


@pytest.fixture
def kept_program() -> Iterator[Program]:
    with keeping_program() as program:
        yield program


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["plan", "--model", "9b"], ["plan", "--all", "--json"], ["plan", "--help"]],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(program: Program, words: list[str]) -> None:
    loaded, _ = loaded_modules(program, words, (*HEAVY, *SERVERS))
    assert loaded == "LOADED [] 0"


def test_a_call_that_a_kept_model_answers_imports_nothing_heavy(kept_program: Program) -> None:
    words = ["-m", "demo", "-q", "--no-save", "--max-new-tokens", "4", *KEEP, "Hello"]
    kept_program(*words)
    unneeded = ("rich", "numpy", "localgemma_cli.planning", "localgemma_cli.models.resolve")
    loaded, models = loaded_modules(kept_program, words, (*HEAVY, *SERVERS, *unneeded))
    assert (loaded, models) == ("LOADED [] 0", 0)


def loaded_modules(program: Program, words: list[str], names: tuple[str, ...]) -> tuple[str, int]:
    """Which of `names` a start imports, with its exit code; and how many modules of models."""
    probe = (
        "import sys; from localgemma_cli.cli import run\n"
        "from localgemma_cli.environment import standard_streams\n"
        f"code = run({words!r}, standard_streams())\n"
        f"print('LOADED', sorted(set({names!r}) & set(sys.modules)), code, file=sys.stderr)\n"
        "print(sum(name.startswith('transformers.models.') for name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        env=program.env,
        check=True,
        timeout=600,
    )
    assert done.stdout
    loaded, models = done.stderr.splitlines()[-2:]
    return loaded, int(models)


def seconds(program: Program, *command: str) -> float:
    """Of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], env=program.env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_within_four_times_of_importing_typer_and_rich(program: Program) -> None:
    """The least of five by turns: other load on the machine only ever adds."""
    program = program.with_environment(PYTHONDONTWRITEBYTECODE="")
    commands = (("-c", "import typer, rich.console"), ("-m", "localgemma_cli", "--help"))
    rounds = [[seconds(program, *each) for each in commands] for _ in range(5)]
    floor, taken = map(min, zip(*rounds, strict=True))
    assert taken <= 4 * floor


# What torch.compile, several processes or another model need, and an answer does not.
UNUSED = (
    "sympy",
    "torch._dynamo.convert_frame",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
)
UNUSED += ("bitsandbytes", "peft", "prompt_toolkit", "torch.onnx")


def test_an_answer_imports_only_what_it_uses(program: Program) -> None:
    words = ["-m", "demo", "-q", "--no-save", "--max-new-tokens", "4", "Hello"]
    loaded, models = loaded_modules(program, words, UNUSED)
    assert loaded == "LOADED [] 0"
    assert models < 20
