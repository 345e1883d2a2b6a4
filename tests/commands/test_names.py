"""Names, `models.toml`, `models pull` and `prompt` of hub models, as a user runs them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_server import HubServer, Repo
from support.models import DEMO
from support.program import Program

TINY, BARE, OLD = "someone/tiny-gemma", "someone/base-gemma", "someone/old-gemma"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    model = Repo.from_folder(DEMO)
    bare = {name: data for name, data in model.files.items() if name != "chat_template.jinja"}
    old = {**bare, "tokenizer.model": b"pieces"}
    del old["tokenizer.json"]
    with HubServer({TINY: model, BARE: Repo(bare), OLD: Repo(old)}) as server:
        yield server


@pytest.fixture
def online(program: Program, hub: HubServer) -> Program:
    return program.with_environment(HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_TELEMETRY="1")


def own(program: Program, text: str) -> None:
    (program.config / "models.toml").write_text(text)


def test_prompt_needs_the_tokenizer_only(online: Program, hub: HubServer) -> None:
    done = online("prompt", "-m", TINY, "--json", "Hello")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == (
        "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"
    )
    assert not hub.asked_for(WEIGHTS)
    asked = len(hub.requests)
    assert online("prompt", "-m", TINY, "--offline", "Hello").returncode == 0
    assert len(hub.requests) == asked
    row = online("-m", TINY, "--offline", "Hello")  # what is on disk is no whole model
    assert row.returncode == 4


def test_a_model_without_a_template_continues_text_and_says_so_once(online: Program) -> None:
    done = online("prompt", "-m", BARE, "Once upon a time")
    assert done.stdout.startswith("<bos>Once upon a time\n2 ")
    assert done.stderr.count("base model") == 1
    done = online("-m", BARE, "--max-new-tokens", "5", "localgemma is")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("base model") == 1
    assert online("-m", BARE, "-q", "--max-new-tokens", "5", "localgemma is").stderr == ""


def test_a_repository_with_only_an_old_tokenizer_is_refused_with_the_reason(online: Program) -> None:
    done = online("prompt", "-m", OLD, "Hello")
    assert done.returncode == 4
    assert "only tokenizer.model" in done.stderr


@pytest.mark.parametrize("part", ["repository", "adapter"])
def test_pull_says_whether_it_fits_then_fetches_then_has_it(
    online: Program, hub: HubServer, part: str
) -> None:
    done = online("models", "pull", TINY)
    assert done.returncode == 0, done.stderr
    assert "fits here" in done.stderr
    assert done.stdout.startswith(f"{TINY}: ")
    assert hub.asked_for(WEIGHTS)
    own(online, f'[tiny]\n{part} = "{TINY}"\n')
    (row,) = json.loads(online("models", "list", "--json").stdout)["own"]
    assert (row["name"], row["on_disk"]) == ("tiny", True)
    assert row["disk_bytes"] >= (DEMO / WEIGHTS).stat().st_size
    assert online("models", "rm", "tiny", "--yes").returncode == 0
    (row,) = json.loads(online("models", "list", "--json").stdout)["own"]
    assert (row["on_disk"], row["disk_bytes"]) == (False, 0)


def test_pull_does_not_go_behind_offlines_back(online: Program, hub: HubServer) -> None:
    done = online("models", "pull", TINY, "--offline")
    assert done.returncode == 2
    assert "--offline" in done.stderr
    assert not hub.requests


def test_an_own_name_brings_its_system_text_and_sampling_unless_flags_say_otherwise(
    program: Program,
) -> None:
    own(
        program,
        '[pirate]\nrepository = "demo"\nsystem = "Talk like a pirate."\n'
        "sampling = { temperature = 0, max-new-tokens = 40 }\n",
    )
    assert "Talk like a pirate." in program("prompt", "-m", "pirate", "Hi").stdout
    other = program("prompt", "-m", "pirate", "-s", "Be brief.", "Hi").stdout
    assert "Be brief." in other
    assert "pirate" not in other
    first, second = (program("-m", "pirate", "--json", "What is your name?") for _ in range(2))
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert answer["response"] == json.loads(second.stdout)["response"]
    assert answer["plan"]["model"]["name"] == "pirate"
    assert answer["usage"]["completion_tokens"] <= 40


def test_a_damaged_models_toml_names_file_and_key(program: Program) -> None:
    own(program, '[mine]\nrepository = "demo"\ncolour = "red"\n')
    done = program("-m", "mine", "Hi")
    assert done.returncode == 2
    assert "models.toml" in done.stderr
    assert "'colour'" in done.stderr


def test_a_base_model_is_continued_text_after_text(program: Program, tmp_path: Path) -> None:
    from support.terminal import Terminal

    words = ["-m", "demo", "--template", "raw", "--temperature", "0", "--max-new-tokens", "12"]
    with Terminal(program, words) as terminal:
        terminal.wait_for_prompt()
        terminal.type("localgemma is a\r")
        terminal.wait("base model: it continues your text")
        terminal.wait_for_prompt()
        terminal.type("localgemma is a\r")
        terminal.wait(r"localgemma is a[\s\S]*program")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def adapted(program: Program) -> Path:
    """An adapter of the demo in a folder of its own: what a planner reads of it, and its tokenizer."""
    folder = program.folder / "adapter"
    folder.mkdir()
    form = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "demo"}
    (folder / "adapter_config.json").write_text(json.dumps(form))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    (folder / "chat_template.jinja").write_text("{{ 'ADAPTED ' + messages[-1]['content'] }}")
    return folder


@pytest.mark.parametrize("base", ['repository = "demo"', ""], ids=["with its base", "alone"])
def test_an_own_names_adapter_is_used_by_every_command(program: Program, base: str) -> None:
    folder = adapted(program)
    own(program, f'[coder]\n{base}\nadapter = "{folder}"\n')
    plan = json.loads(program("plan", "-m", "coder", "--json").stdout)["model"]
    assert (plan["name"], plan["id"], plan["adapter"]) == ("coder", "demo", str(folder))
    assert "ADAPTED Hi" in program("prompt", "-m", "coder", "Hi").stdout
    chat = program("-m", "coder", "Hi")
    assert (chat.returncode, chat.stdout) == (4, "")  # it looks for the adapter's weights
    assert f"{folder} has no adapter_model.safetensors" in chat.stderr
    pulled = program("models", "pull", "coder")
    assert pulled.returncode == 0, pulled.stderr
    assert str(folder) in pulled.stdout
    (row,) = json.loads(program("models", "list", "--json").stdout)["own"]
    assert row["on_disk"] is (base == "")
    bench = program("bench", "-m", "coder")
    assert bench.returncode == 2
    assert "bench -m demo" in bench.stderr
    draft = program("plan", "-m", "2b", "--assistant", "coder")
    assert draft.returncode == 2
    assert "remove --assistant" in draft.stderr


def test_an_adapter_that_is_named_replaces_the_own_names(program: Program) -> None:
    folder = adapted(program)
    own(program, '[coder]\nrepository = "demo"\nadapter = "/gone/away"\n')
    plan = json.loads(program("plan", "-m", "coder", "--adapter", str(folder), "--json").stdout)["model"]
    assert (plan["name"], plan["id"], plan["adapter"]) == ("coder", "demo", str(folder))
    assert program("plan", "-m", "coder").returncode == 4


def test_pull_fetches_an_adapter_and_its_base(online: Program, hub: HubServer) -> None:
    folder = adapted(online)
    (folder / "adapter_model.safetensors").write_bytes((DEMO / WEIGHTS).read_bytes())
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"demo"', f'"{TINY}"'))
    hub.publish("someone/adapter", Repo.from_folder(folder))
    own(online, '[coder]\nadapter = "someone/adapter"\n')
    done = online("models", "pull", "coder")
    assert done.returncode == 0, done.stderr
    assert hub.asked_for("adapter_model.safetensors")
    assert hub.asked_for(WEIGHTS)
    assert json.loads(online("plan", "-m", "coder", "--offline", "--json").stdout)["model"]["id"] == TINY
