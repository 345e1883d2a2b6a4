"""GGUF models of a hub in the commands of the program: their names, sizes and checks, before and after."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import tiny
from support.gguf_files import gguf_bytes
from support.gguf_models import Q8_0, write_gguf
from support.hub_server import HubServer, Repo
from support.program import Program, completed
from support.terminal import Terminal

ID, Q4, Q8 = "org/tiny-GGUF", "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("gguf")
    return {Q4: gguf_bytes(folder, salt=4), Q8: gguf_bytes(folder, salt=8)}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer({ID: files}) as server:
        yield server


@pytest.fixture
def online(program: Program, hub: HubServer) -> Program:
    return program.with_environment(HF_ENDPOINT=hub.endpoint)


def others(program: Program) -> dict[str, dict[str, object]]:
    done = program("models", "list", "--json")
    assert done.returncode == 0, done.stderr
    return {row["id"]: row for row in json.loads(done.stdout)["other"]}


def test_a_model_is_pulled_listed_completed_planned_and_removed(
    online: Program, hub: HubServer, files: dict[str, bytes]
) -> None:
    done = online("models", "pull", f"{ID}:q8_0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ID}:Q8_0: 0.2 MB in ")
    assert done.stdout.endswith(f"{Q8}\n")
    assert f"{ID}:Q8_0 fits here" in done.stderr
    assert (
        f"Downloading {ID}:Q8_0: 0.0 MB, licence: see its model card.\n" in done.stderr
    )  # the header has it all
    assert online("models", "pull", "-q", ID).stdout.startswith(f"{ID}:Q8_0: ")  # which is on disk
    assert online("models", "pull", "-q", f"{ID}:{Q4}").returncode == 0
    rows = {"on_disk": True, "disk_bytes": len(files[Q4])}
    assert others(online) == {f"{ID}:{word}": {"id": f"{ID}:{word}", **rows} for word in ("Q4_K_M", "Q8_0")}
    assert f"{ID}:Q8_0  on disk, 0.2 MB\n" in online("models", "list").stdout
    names = [f"{ID}:Q4_K_M", f"{ID}:Q8_0"]
    assert completed(online, "-m", "org") == names
    assert completed(online, "models", "rm", "org") == names
    assert completed(online, "-m", ID, ":", "Q4") == ["Q4_K_M"]  # as bash splits it
    offline = json.loads(online("plan", "--json", "--offline", "-m", f"{ID}:q8_0").stdout)
    assert offline["model"]["id"] == f"{ID}:Q8_0"
    assert "remove it with --yes" in online("models", "rm", f"{ID}:Q8_0").stderr
    done = online("models", "rm", f"{ID}:q8_0", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"removed 0.2 MB: the downloaded {ID}:q8_0\n"
    assert list(others(online)) == [f"{ID}:Q4_K_M"]
    assert f"localgemma models rm {ID}\n" in online("models", "rm", f"{ID}:q8_0").stderr
    assert online("models", "rm", f"{ID}:Q4_K_M", "--yes").returncode == 0
    assert not list((online.folder / "hub" / "hub").glob("models--*"))
    assert online("models", "rm", f"{ID}:Q4_K_M").returncode == 4


def test_a_large_download_asks_first_on_a_terminal(
    online: Program, hub: HubServer, files: dict[str, bytes]
) -> None:
    large = {**files, Q4: files[Q4] + bytes(9_000_000)}
    hub.publish(ID, Repo(large, claimed_sizes={Q4: 150_000_000}))
    with Terminal(online, ["-m", ID], columns=200) as terminal:
        asked = terminal.wait(r"\[y/N\]")
        told_default = f"the default is Q4_K_M. Others: {ID}:Q8_0 (0.2 MB)."
        for told in (told_default, f"{ID}:Q4_K_M", "0.1 GB", "licence", str(online.folder / "hub")):
            assert told in asked
        terminal.type("\r")
        assert terminal.wait_for_end() == 4
        assert f"models pull {ID}:Q4_K_M" in terminal.text
    assert all(request.range for request in hub.asked_for(Q4))


def test_the_names_of_models_toml_and_config_toml_may_be_of_a_file(online: Program, hub: HubServer) -> None:
    (online.config / "models.toml").write_text(f'[mine]\nrepository = "{ID}:Q8_0"\n')
    (online.config / "config.toml").write_text(f'model = "{ID}:Q4_K_M"\n')
    assert json.loads(online("plan", "--json").stdout)["model"]["id"] == f"{ID}:Q4_K_M"
    assert online("models", "pull", "-q", "mine").returncode == 0
    listed = json.loads(online("models", "list", "--json").stdout)
    (own,) = listed["own"]
    assert (own["id"], own["on_disk"]) == (f"{ID}:Q8_0", True)
    assert [row["id"] for row in listed["other"]] == [ID]  # the header of the other file
    assert online("prompt", "-m", f"{ID}:Q4_K_M", "hi").returncode == 4


def test_errors_are_one_sentence_and_what_to_do(online: Program, hub: HubServer, tmp_path: Path) -> None:
    for model, words in (
        (f"{ID}:Q5_K_M", f"Choose one of: {ID}:Q4_K_M (0.2 MB), :Q8_0 (0.2 MB)."),
        (str(tmp_path / "a:b.gguf"), "GGUF file not found"),
    ):
        done = online("-m", model, "hi")
        assert (done.returncode, done.stdout) == (4, ""), done.stderr
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 2
    hub.publish(ID, Repo({Q4: b""}, gated="manual"))
    assert online("-m", f"{ID}:Q4_K_M", "hi").returncode == 3


def test_a_model_answers_from_the_hub_and_then_offline(
    online: Program, hub: HubServer, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    write_gguf(tmp_path / "real.gguf", tiny("gemma2"), Q8_0)
    hub.publish(ID, {"sub/tiny-Q8_0.gguf": (tmp_path / "real.gguf").read_bytes()})
    words = ("--json", "--temperature", "0", "--max-new-tokens", "3", "Hello")
    done = online("-m", f"{ID}:sub/tiny-Q8_0.gguf", *words)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["plan"]["quantization"]) == (f"{ID}:sub/tiny-Q8_0.gguf", "gguf")
    asked = len(hub.requests)
    again = json.loads(online("-m", ID, "--offline", *words).stdout)
    assert (again["model"], again["response"]) == (f"{ID}:Q8_0", answer["response"])
    assert len(hub.requests) == asked
