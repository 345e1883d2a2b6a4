"""Gigabytes are downloaded only where somebody asked for them."""

import time
from collections.abc import Iterator

import pytest
from support.hub_server import HubServer, Repo
from support.models import DEMO
from support.program import Program
from support.terminal import Terminal

TINY = "someone/tiny-gemma"
WEIGHTS = "model.safetensors"
ROOM = ("--host-memory", "64GiB")  # whatever else this machine's memory holds now
BY_DEFAULT = ("google/gemma-2-9b-it", "google/gemma-2-2b-it")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    files = Repo.from_folder(DEMO).files
    large = Repo(files, claimed_sizes={WEIGHTS: 150_000_000})
    with HubServer({TINY: large, **dict.fromkeys(BY_DEFAULT, large)}) as server:
        yield server


@pytest.fixture
def online(program: Program, hub: HubServer) -> Program:
    return program.with_environment(HF_ENDPOINT=hub.endpoint)


def test_on_a_terminal_a_large_download_asks_first(online: Program, hub: HubServer) -> None:
    with Terminal(online, ["-m", TINY], columns=200) as terminal:
        asked = terminal.wait(r"\[y/N\]")
        for told in (TINY, "0.2 GB", "licence", str(online.folder / "hub")):
            assert told in asked
        assert "> " not in asked  # the prompt is not up yet
        terminal.type("\r")
        assert terminal.wait_for_end() == 4
        assert "models pull" in terminal.text
    with Terminal(online, ["-m", TINY, "Hello there"]) as terminal:
        terminal.wait(r"\[y/N\]")
        terminal.type("\x03")
        assert terminal.wait_for_end() == 130
    assert not hub.asked_for(WEIGHTS)
    with Terminal(online, ["-m", TINY, "Hello there"]) as terminal:
        terminal.wait(r"\[y/N\]")
        terminal.type("y\r")
        deadline = time.monotonic() + 120
        while not hub.asked_for(WEIGHTS):
            assert time.monotonic() < deadline, terminal.text
            terminal.read()
        assert terminal.text.count("[y/N]") == 1


def test_without_a_terminal_the_default_is_not_downloaded_unasked(online: Program, hub: HubServer) -> None:
    done = online(*ROOM, "Hello there")
    assert (done.returncode, done.stdout) == (4, "")
    assert "localgemma models pull " in done.stderr
    assert "--yes" in done.stderr
    assert not hub.requests
    assert online("bench").returncode == 4
    assert not hub.requests


@pytest.mark.parametrize("named", ["--yes", "variable", "config.toml", "models.toml"])
def test_what_is_named_or_agreed_to_is_downloaded(online: Program, hub: HubServer, named: str) -> None:
    """As far as the gate: exit 3 is the hub's refusal, exit 4 would be our own."""
    words = ["--yes"] if named == "--yes" else []
    if named == "variable":
        online = online.with_environment(LOCALGEMMA_MODEL="2b")
    elif named == "config.toml":
        (online.config / "config.toml").write_text('model = "2b"\n')
    elif named == "models.toml":
        (online.config / "models.toml").write_text('[mine]\nrepository = "2b"\n')
        words = ["-m", "mine"]
    for name in BY_DEFAULT:
        hub.publish(name, Repo(Repo.from_folder(DEMO).files, gated="manual"))
    done = online(*words, "--preset", "memory", *ROOM, "Hello there")
    assert done.returncode == 3, done.stderr
    assert hub.requests


def test_pull_is_the_asking_itself(online: Program, hub: HubServer) -> None:
    hub.publish(TINY, DEMO)
    done = online("models", "pull", "--yes", "-q", TINY)
    assert done.returncode == 0, done.stderr
    assert hub.asked_for(WEIGHTS)
