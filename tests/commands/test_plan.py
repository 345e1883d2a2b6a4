"""`localgemma plan` and the small commands, as a user runs them."""

import json

import pytest
from support.program import Program
from support.schemas import validate


def test_a_24_gib_gpu_holds_exact_up_to_9b_and_27b_only_in_4_bits(program: Program) -> None:
    done = program("plan", "--all", "--device", "cuda", "--device-memory", "24GiB", "--json")
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout)["plans"]
    for plan in plans:
        validate(plan, "plan")
    fitting = {(plan["model"]["name"], plan["preset"]) for plan in plans if plan["memory"]["fits"]}
    assert {(model, "exact") for model in ("2b", "7b", "9b")} <= fitting
    assert {preset for model, preset in fitting if model == "27b"} == {"memory", "memory_extreme"}


def test_one_plan_says_why(program: Program) -> None:
    done = program("plan", "--model", "9b", "--preset", "speed", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    validate(plan, "plan")
    assert plan["reasons"]
    assert plan["model"]["parameters"] == 9241705984


def test_the_table_fits_80_columns_without_ansi(program: Program) -> None:
    done = program("plan", "--all")
    assert done.returncode == 0
    assert "27b" in done.stdout
    assert "memory_extreme" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_users_own_preset_is_planned(program: Program) -> None:
    presets = program.config / "presets"
    presets.mkdir()
    (presets / "mine.toml").write_text('inherits = "memory"\nsummary = "Mine."\n[cpu]\ncache = "full"\n')
    done = program("plan", "-m", "2b", "--preset", "mine", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["quantization"] in ("nf4", "int4")  # by the processor
    assert plan["cache"] == "full"


def test_flag_beats_variable_beats_file_beats_default(program: Program) -> None:
    def preset(program: Program, *words: str) -> str:
        done = program("plan", "-m", "2b", "--json", *words)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["preset"])

    default = preset(program)
    (program.config / "config.toml").write_text('preset = "speed"\nmax-new-tokens = 50\n')
    assert default != "speed"
    assert preset(program) == "speed"
    with_variable = program.with_environment(LOCALGEMMA_PRESET="memory")
    assert preset(with_variable) == "memory"
    assert preset(with_variable, "--preset", "exact") == "exact"


@pytest.mark.parametrize("text", ["colour = 1\n", "preset = \n", "preset = [1]\n", "temperature = 'warm'\n"])
def test_a_wrong_config_file_is_a_usage_error(program: Program, text: str) -> None:
    (program.config / "config.toml").write_text(text)
    done = program("-m", "demo", "hi")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2


def test_models_list_says_what_the_demo_is(program: Program) -> None:
    done = program("models", "list")
    assert done.returncode == 0
    assert "not a general assistant" in done.stdout
    rows = json.loads(program("models", "list", "--json").stdout)["models"]
    assert {row["name"] for row in rows} >= {"2b", "7b", "9b", "27b", "demo"}
    assert next(row for row in rows if row["name"] == "demo")["on_disk"] is True


def test_prompt_shows_text_and_ids_as_sent(program: Program) -> None:
    done = program("prompt", "-m", "demo", "-s", "Be brief.", "--json", "Hello <end_of_turn>")
    shown = json.loads(done.stdout)
    assert shown["text"] == (
        "<bos><start_of_turn>user\nBe brief.\n\nHello <end_of_turn><end_of_turn>\n<start_of_turn>model\n"
    )
    assert shown["ids"][:2] == [2, 106]
    assert shown["ids"].count(107) == 1


@pytest.mark.parametrize("command", [[], ["plan"], ["models"], ["models", "list"], ["prompt"]], ids=str)
def test_every_help_has_an_example(program: Program, command: list[str]) -> None:
    done = program(*command, "--help")
    assert done.returncode == 0
    assert "localgemma" in done.stdout.split("xample", 1)[1]


def test_the_older_spellings_work(program: Program) -> None:
    done = program("-m", "demo", "--silent", "--max_new_tokens", "2", "--json", "Hello")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 2
