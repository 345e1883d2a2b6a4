"""The whole program against a hub on loopback: what a user of a gated, missing or unreachable model sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_server import HubServer, Repo
from support.models import DEMO
from support.program import Program

OPEN, GATED, PICKLED = "someone/tiny-gemma", "google/gemma-2-2b-it", "someone/pickled"
ROOM = ("--host-memory", "64GiB")  # whatever else this machine's memory holds now


@pytest.fixture
def hub() -> Iterator[HubServer]:
    model = Repo.from_folder(DEMO)
    pickled = {name: data for name, data in model.files.items() if not name.endswith(".safetensors")}
    repos = {
        OPEN: model,
        GATED: Repo(model.files, gated="manual", refusals={"hf_stranger": "GatedRepo"}),
        PICKLED: Repo({**pickled, "pytorch_model.bin": b"pickle"}),
    }
    with HubServer(repos, tokens=("hf_good", "hf_stranger")) as server:
        yield server


@pytest.fixture
def online(program: Program, hub: HubServer) -> Program:
    return program.with_environment(HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_TELEMETRY="1")


def test_a_hub_model_is_downloaded_and_answers_then_answers_offline(online: Program, hub: HubServer) -> None:
    done = online("-m", OPEN, "--temperature", "0", "What is the memory preset?")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    asked = len(hub.requests)
    again = online("-m", OPEN, "--offline", "--temperature", "0", "What is the memory preset?")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("token", "says"),
    [(None, "HF_TOKEN"), ("hf_stranger", GATED), ("hf_expired", "token")],
    ids=["no token", "not accepted", "bad token"],
)
def test_exit_3_a_gated_model(online: Program, token: str | None, says: str) -> None:
    program = online.with_environment(HF_TOKEN=token) if token else online
    done = program("-m", "2b", "--preset", "memory", *ROOM, "Hello")
    assert done.returncode == 3
    assert says in done.stderr
    assert "hf_" not in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""


def test_a_gated_model_with_access_gets_as_far_as_its_weights(online: Program) -> None:
    """The stand-in serves the bundled model's files under the gated name; they load and answer."""
    words = ("-m", "2b", "--preset", "exact", "-q", *ROOM)
    done = online.with_environment(HF_TOKEN="hf_good")(*words, "Hello")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model", ["someone/missing", PICKLED])
def test_exit_4_what_cannot_be_loaded(online: Program, model: str) -> None:
    done = online("-m", model, "Hello")
    assert done.returncode == 4
    assert model in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_exit_4_offline_without_a_copy_names_the_demo(program: Program) -> None:
    for words in (["--offline"], []):
        done = program("-m", "2b", "--preset", "memory", *words, *ROOM, "Hello")
        assert done.returncode == 4
        assert "--model demo" in done.stderr


def test_memory_is_checked_before_the_hub_is_asked(online: Program, hub: HubServer) -> None:
    done = online("-m", "27b", "--preset", "exact", "--host-memory", "8GiB", "Hello")
    assert done.returncode == 5
    assert hub.requests == []


def test_models_list_knows_what_is_on_disk(online: Program) -> None:
    assert "not on disk" in online("models", "list").stdout.split("2b")[1].splitlines()[0]
    online.with_environment(HF_TOKEN="hf_good")("prompt", "-m", "2b", "Hello")
    assert "not on disk" not in online("models", "list").stdout.split("2b")[1].splitlines()[0]


def test_a_token_never_shows(online: Program, tmp_path: Path) -> None:
    program = online.with_environment(HF_TOKEN="hf_secretsecret")
    done = program("-m", "2b", "--preset", "memory", "-v", *ROOM, "Hello")
    assert "hf_secretsecret" not in done.stdout + done.stderr
    assert done.returncode == 3
