"""hub.py with the real client, against a hub on loopback: what it brings, resumes and finds on disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.hub_calls import (
    FILES,
    ID,
    LOADED,
    SHARDS,
    UNWANTED,
    WEIGHTS,
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

from localgemma_cli.models.hub import transfer as hub_module


def test_fetch_brings_what_is_loaded_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    hub.warning = "this model; is about to move"
    outcome = run(hub.environment(tmp_path))
    assert names_in(outcome.path) == LOADED
    assert all((outcome.path / name).read_bytes() == FILES[name] for name in LOADED)
    assert not [r for r in hub.requests for name in UNWANTED if r.path.endswith(f"/{name}")]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_progress_counts_all_bytes_never_falls_and_does_not_flood(hub: HubServer, tmp_path: Path) -> None:
    begin = time.monotonic()
    seen = run(hub.environment(tmp_path)).seen
    total = sum(len(FILES[name]) for name in LOADED)
    done = [step[1] for step in seen]
    assert {(stage, of) for stage, _, of in seen} == {("downloading", total)}
    assert done == sorted(set(done))
    assert done[-1] == total
    assert len(seen) <= 10 * (time.monotonic() - begin) + 2


def test_progress_tells_of_a_fresh_start_only_when_it_has_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_PROGRESS_SECONDS", 0)
    told: list[int] = []
    meter = hub_module._Meter(lambda progress: told.append(progress.done), total=20)
    for here in (5, 3, 9):
        meter.show(10, here)
    meter.finish()
    assert told == [15, 19, 20]


def test_the_client_finds_what_was_fetched(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    folder = run(env).path
    code = f"import huggingface_hub as h; print(h.snapshot_download({ID!r}, local_files_only=True))"
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(folder)


def test_what_the_client_downloaded_is_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="1")
    code = f"import huggingface_hub as h; print(h.snapshot_download({ID!r}))"
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    asked = len(hub.requests)
    assert str(run(env).path) == found.stdout.strip()
    assert len(hub.requests) == asked + 1


def test_a_cut_connection_is_taken_up_where_it_broke(hub: HubServer, tmp_path: Path) -> None:
    hub.cut(SHARDS[0], after=700_000)
    folder = run(hub.environment(tmp_path)).path
    assert (folder / SHARDS[0]).read_bytes() == WEIGHTS[SHARDS[0]]
    assert [r.range for r in hub.asked_for(SHARDS[0])] == [None, "bytes=700000-"]


def test_a_server_without_ranges_is_asked_from_the_start(hub: HubServer, tmp_path: Path) -> None:
    hub.cut(SHARDS[0], after=700_000)
    hub.refuses_ranges = True
    outcome = run(hub.environment(tmp_path))
    assert (outcome.path / SHARDS[0]).read_bytes() == WEIGHTS[SHARDS[0]]
    done = [step[1] for step in outcome.seen]
    assert done == sorted(set(done))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_process_leaves_what_the_next_one_resumes(
    hub: HubServer, tmp_path: Path, how: signal.Signals
) -> None:
    env = hub.environment(tmp_path)
    hub.hold(SHARDS[0], after=700_000)
    child = start(env)
    wait_until(lambda: any(size_of(p) == 700_000 for p in partials(tmp_path)))
    child.send_signal(how)
    _, err = child.communicate(timeout=300)  # the hub would hold it for longer
    assert child.returncode == -how
    assert how == signal.SIGKILL or err.rstrip().endswith("KeyboardInterrupt")
    assert run(env, "cached_snapshot").result is None

    outcome = run(env)
    assert (outcome.path / SHARDS[0]).read_bytes() == WEIGHTS[SHARDS[0]]
    assert hub.asked_for(SHARDS[0])[-1].range == "bytes=700000-"
    assert len(hub.asked_for("config.json")) == 1
    assert outcome.seen[0][1] >= 700_000


def test_two_processes_share_one_download(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    hub.hold(SHARDS[0], after=100)
    children = [start(env), start(env)]
    wait_until(lambda: len([r for r in hub.requests if r.path.startswith("/api/")]) == 2)
    time.sleep(0.4)  # time for the second to get as far as the first, were nothing in its way
    hub.release()
    first, second = (finish(child, env)[0].path for child in children)
    assert first == second
    assert all((first / name).read_bytes() == FILES[name] for name in LOADED)
    assert len(hub.asked_for(SHARDS[0])) == 1


def test_a_damaged_partial_file_is_thrown_away(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    digest = hub.find(ID, "main").sha256(SHARDS[0])  # type: ignore[union-attr]
    blobs = tmp_path / "hf/hub" / f"models--{ID.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.incomplete").write_bytes(b"not these bytes")
    run(env).failed("NetworkError", SHARDS[0], "damaged")
    assert (run(env).path / SHARDS[0]).read_bytes() == WEIGHTS[SHARDS[0]]


def test_a_revision_by_tag_and_by_commit(tmp_path: Path) -> None:
    with HubServer({ID: Repo(FILES, tags=("float16",))}) as hub:
        env = hub.environment(tmp_path)
        folder = run(env, revision="float16").path
        asked = len(hub.requests)
        tagged, main, commit = run_all(
            env,
            a_call("cached_snapshot", revision="float16"),
            a_call("cached_snapshot"),
            a_call(revision=folder.name),
        )
        assert tagged.path == commit.path == folder
        assert main.result is None
        assert len(hub.requests) == asked


def test_an_adapter_has_no_config(tmp_path: Path) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora"}
    with HubServer({ID: adapter}) as hub:
        env = hub.environment(tmp_path)
        fetched, cached = run_all(env, a_call(), a_call("cached_snapshot"))
        assert names_in(fetched.path) == set(adapter)
        assert cached.path == fetched.path


def test_offline_without_a_copy(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    run(env, offline=True).failed("NetworkError", ID, "--offline", "--model demo")
    for outcome in run_all({**env, "HF_HUB_OFFLINE": "1"}, a_call("fetch_snapshot"), a_call("fetch_config")):
        outcome.failed("NetworkError", ID, "HF_HUB_OFFLINE")
    assert not hub.requests


def test_offline_with_a_copy(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    folder = run(env).path
    asked = len(hub.requests)
    calls = a_call(offline=True), a_call("cached_snapshot"), a_call("fetch_config", offline=True)
    whole, cached, config = run_all(env, *calls)
    assert whole.path == cached.path == run({**env, "HF_HUB_OFFLINE": "1"}).path == folder
    assert config.result == {"model_type": "gemma2"}
    (folder / SHARDS[1]).unlink()
    partly, cached, config = run_all(env, *calls)
    partly.failed("NetworkError", "not completely on disk")
    assert cached.result is None
    assert config.result == {"model_type": "gemma2"}
    assert len(hub.requests) == asked


def test_config_alone(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    config, offline, cached = run_all(
        env, a_call("fetch_config"), a_call("fetch_config", offline=True), a_call("cached_snapshot")
    )
    assert config.result == offline.result == {"model_type": "gemma2"}
    assert not hub.asked_for("tokenizer.json")
    assert cached.result is None


def test_a_whole_copy_outweighs_whatever_the_hub_says(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    folder = run(env).path
    hub.fail_with(503)
    outcome = run(env)
    assert outcome.path == folder
    assert "using the copy on disk" in outcome.seen[-1][0]
    hub.fail_with(None)
    assert run({**env, "HF_TOKEN": "hf_expired"}).path == folder
    hub.close()
    outcome = run(env)
    assert outcome.path == folder
    assert "cannot be reached" in outcome.seen[-1][0]


def test_a_newer_commit_replaces_the_copy_only_when_it_is_whole(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    old = run(env).path
    newer = {**FILES, "config.json": b'{"model_type": "newer"}', SHARDS[0]: os.urandom(500_000)}
    hub.publish(ID, newer)
    hub.hold(SHARDS[0], after=100)
    child = start(env)
    wait_until(lambda: bool(partials(tmp_path)))
    child.kill()
    child.communicate()
    assert run(env, offline=True).path == old
    new = run(env).path
    assert new != old
    assert (new / SHARDS[0]).read_bytes() == newer[SHARDS[0]]
    assert len(hub.asked_for(SHARDS[1])) == 1
    assert run(env, "fetch_config").result == {"model_type": "newer"}


def test_a_copy_is_not_replaced_by_more_than_was_agreed_to(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    old = run(env).path
    hub.publish(ID, {**FILES, SHARDS[0]: os.urandom(500_000)})
    outcome = run(env, largest_update=400_000)
    assert outcome.path == old
    assert "models pull" in outcome.seen[-1][0]
    assert len(hub.asked_for(SHARDS[0])) == 1
    assert run(env, largest_update=600_000).path != old
