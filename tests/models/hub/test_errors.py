"""hub.py with the real client, against a hub on loopback: what it says when there is nothing to bring."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.hub_calls import (
    FILES,
    ID,
    LOADED,
    SHARDS,
    SMALL,
    a_call,
    finish,
    names_in,
    partials,
    run,
    run_all,
    size_of,
    start,
    wait_until,
)
from support.hub_server import HubServer, Repo


@contextmanager
def hub_of(repo: Repo) -> Iterator[HubServer]:
    with HubServer({ID: repo}, tokens=("hf_good", "hf_other")) as server:
        yield server


def test_gated_without_a_token(tmp_path: Path) -> None:
    with hub_of(Repo(FILES, gated="manual")) as hub:
        error = run(hub.environment(tmp_path)).failed("AccessError", ID, "gated")
        assert f"https://huggingface.co/{ID}" in error["hint"]
        assert "hf auth login" in error["hint"]
        assert "HF_TOKEN" in error["hint"]
        assert "--model demo" in error["hint"]
        assert [r.path for r in hub.requests] == [f"/api/models/{ID}/revision/main"]


def test_gated_with_a_token_that_has_access(tmp_path: Path) -> None:
    with hub_of(Repo(FILES, gated="manual")) as hub:
        assert names_in(run(hub.environment(tmp_path, token="hf_good")).path) == LOADED
        assert {r.token for r in hub.requests if r.path.startswith("/cdn/")} == {None}


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("Access to model X is restricted and you are not in the authorized list.", "Accept it at"),
        ("Your request to access model X is awaiting a review from the repo authors.", "still pending"),
        (
            "Please enable access to public gated repositories in your fine-grained token settings.",
            "settings/",
        ),
    ],
)
def test_gated_with_a_token_that_has_no_access(tmp_path: Path, said: str, word: str) -> None:
    with hub_of(Repo(FILES, gated="manual", refusals={"hf_other": said})) as hub:
        env = hub.environment(tmp_path, token="hf_other")
        for outcome in run_all(env, a_call("fetch_snapshot"), a_call("fetch_config")):
            outcome.failed("AccessError", ID, word)
        assert not [r for r in hub.requests if r.path.endswith(".safetensors")]


@pytest.mark.parametrize("gated", ["manual", False])
def test_a_token_the_hub_does_not_know(tmp_path: Path, gated: str | bool) -> None:
    with hub_of(Repo(FILES, gated=gated)) as hub:
        run(hub.environment(tmp_path, token="hf_expired")).failed("AccessError", "expired", "hf auth login")


def test_a_token_with_characters_no_token_has_is_not_sent(hub: HubServer, tmp_path: Path) -> None:
    run(hub.environment(tmp_path, token="hf_gé\x07od secret")).failed("AccessError", "characters", "HF_TOKEN")
    assert not hub.requests


def test_no_such_model(hub: HubServer, tmp_path: Path) -> None:
    anonymous, known = hub.environment(tmp_path), hub.environment(tmp_path, token="hf_good")
    plain, config = a_call(model_id="a/b"), a_call("fetch_config", model_id="a/b")
    for outcome in run_all(known, plain, config):
        outcome.failed("NotFoundError", "a/b", "spelling")
    missing, gated, no_id = run_all(
        anonymous, plain, a_call(model_id="a/b", gated=True), a_call(model_id="../../\x1b[31metc")
    )
    missing.failed("NotFoundError", "a/b", "spelling", "private")
    gated.failed("AccessError", "a/b", "gated")
    no_id.failed("NotFoundError", "not a model name")


def test_no_such_revision(hub: HubServer, tmp_path: Path) -> None:
    run(hub.environment(tmp_path), revision="v9").failed("NotFoundError", ID, "'v9'", "--revision")


def test_pickle_files_are_not_loaded(tmp_path: Path) -> None:
    with hub_of(Repo({**SMALL, "pytorch_model.bin": b"pickle"})) as hub:
        run(hub.environment(tmp_path)).failed("NotFoundError", ID, "safetensors", "can run code")
        assert len(hub.requests) == 1


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", SHARDS[1]])
def test_a_model_that_lacks_a_file(tmp_path: Path, lost: str) -> None:
    with hub_of(Repo({name: content for name, content in FILES.items() if name != lost})) as hub:
        run(hub.environment(tmp_path)).failed("NotFoundError", ID, lost)


def test_more_bytes_than_the_disk_has(tmp_path: Path) -> None:
    repo = Repo(FILES, gated="manual", claimed_sizes={SHARDS[1]: 10**18})
    with hub_of(repo) as hub:
        error = run(hub.environment(tmp_path)).failed("DiskSpaceError", ID, "1,000,000,000.0 GB", "HF_HOME")
        assert "free" in error["message"]
        assert len(hub.requests) == 1


def test_a_file_larger_than_the_file_system_takes(hub: HubServer, tmp_path: Path) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))\n"
    env = hub.environment(tmp_path)
    finish(start(env, before=limit), env)[0].failed("DiskSpaceError", ID, "HF_HOME")
    assert run(env).path
    assert hub.asked_for(SHARDS[0])[-1].range == "bytes=1500000-"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs permission to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_on_the_way(hub: HubServer, small_disk: Path) -> None:
    env, ballast = hub.environment(small_disk), small_disk / "ballast"
    hub.hold(SHARDS[0], after=500_000)
    child = start(env)
    wait_until(lambda: any(size_of(p) == 500_000 for p in partials(small_disk)))
    ballast.write_bytes(b"x" * (2 << 20))
    hub.release()
    finish(child, env)[0].failed("DiskSpaceError", ID, "No space left", "HF_HOME")
    run(env).failed("DiskSpaceError", ID, "free")
    os.truncate(ballast, 600_000)  # enough for what is missing, not for the whole file
    assert names_in(run(env).path) == LOADED


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_config_that_is_none(tmp_path: Path, content: bytes) -> None:
    with hub_of(Repo({**FILES, "config.json": content})) as hub:
        run(hub.environment(tmp_path), "fetch_config").failed("NotFoundError", ID, "config.json")


def test_nothing_on_disk_and_no_hub(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path, token="hf_good")
    hub.fail_with(500)
    run(env).failed("NetworkError", "HTTP 500", "Something went wrong [31m on our side", "--model demo")
    hub.fail_with(400)
    run(env).failed("NetworkError", "HTTP 400")
    hub.fail_with(429)
    run(env).failed("NetworkError", "rate of requests")
    hub.close()
    for outcome in run_all(env, a_call("fetch_snapshot"), a_call("fetch_config")):
        outcome.failed("NetworkError", "cannot be reached", "--model demo")


def test_a_name_that_does_not_resolve(hub: HubServer, tmp_path: Path) -> None:
    env = {**hub.environment(tmp_path), "HF_ENDPOINT": "http://hub.invalid"}
    run(env).failed("NetworkError", "cannot be reached")


def test_something_that_is_no_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.fail_with(200)
    run(hub.environment(tmp_path)).failed("NetworkError", "not a model hub", "HF_ENDPOINT")


def test_a_cache_folder_that_cannot_be_written(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run({**hub.environment(tmp_path), "HF_HOME": str(tmp_path / "file")}).failed("LocalGemmaError", "HF_HOME")
