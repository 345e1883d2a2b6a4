"""Copies on disk: found, refused when wrong, never half written, made by one process at a time."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localgemma_cli.backends.pytorch.loading.quantized_cache import (
    CopySpec,
    HashingFile,
    identify_source,
    list_copies,
    open_or_create,
    remove_copy,
    weights_folder,
)
from localgemma_cli.events import LoadProgress
from localgemma_cli.models.safetensors_file import TensorEntry, header

ENTRIES = [TensorEntry("layer.packed", "U8", (1000,))]
HEADER = header(ENTRIES)
CONTENT = bytes(range(250)) * 4
SPEC = CopySpec(
    "tiny", "org/tiny@" + "0" * 40, {"quantization": "nf4"}, (("model.safetensors", 9, 0),), HEADER, 5096
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))


class Loads:
    """Opens copies, and counts how often one was made and what was said."""

    def __init__(self) -> None:
        self.made = 0
        self.said: list[str] = []

    def open(self, spec: CopySpec = SPEC) -> bytes | None:
        mapped = open_or_create(spec, self._make, self._told)
        return None if mapped is None else bytes(mapped)

    def _make(self, sink: HashingFile) -> None:
        self.made += 1
        sink.write(memoryview(HEADER))
        sink.write(memoryview(CONTENT))

    def _told(self, progress: LoadProgress) -> None:
        self.said.append(progress.stage)


@pytest.fixture
def loads() -> Loads:
    return Loads()


def files_of(spec: CopySpec = SPEC) -> tuple[Path, Path]:
    folder = weights_folder() / spec.key
    return folder / "manifest.json", folder / "weights.safetensors"


def test_a_copy_is_made_once_and_private_to_the_user(loads: Loads) -> None:
    assert loads.open() == HEADER + CONTENT
    assert loads.open() == HEADER + CONTENT
    assert (loads.made, loads.said) == (1, [])
    assert weights_folder().stat().st_mode & 0o777 == 0o700
    assert weights_folder().parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "other",
    [{"source": "org/tiny@" + "1" * 40}, {"form": {"quantization": "nf4", "layout": "plain"}}],
    ids=["commit", "form"],
)
def test_another_commit_and_another_form_have_copies_of_their_own(loads: Loads, other: dict) -> None:
    loads.open()
    loads.open(replace(SPEC, **other))
    loads.open()
    assert (loads.made, len(list_copies())) == (2, 2)


def cut_short(manifest: Path, weights: Path) -> None:
    os.truncate(weights, 3000)


def one_bit(manifest: Path, weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def no_weights(manifest: Path, weights: Path) -> None:
    weights.unlink()


def no_manifest(manifest: Path, weights: Path) -> None:
    manifest.unlink()


def no_json(manifest: Path, weights: Path) -> None:
    manifest.write_text("{")


def a_list(manifest: Path, weights: Path) -> None:
    manifest.write_text('{"copy": []}')


def nested(manifest: Path, weights: Path) -> None:
    manifest.write_text('{"copy": {"model": ' + "[" * 20_000)


def many_digits(manifest: Path, weights: Path) -> None:
    manifest.write_text('{"copy": {"bytes": ' + "9" * 5_000 + "}}")


def wrong_types(manifest: Path, weights: Path) -> None:
    content = json.loads(manifest.read_text())
    content["copy"] |= {"model": ["x"], "form": [1], "bytes": {}, "source": None}
    manifest.write_text(json.dumps(content))


def a_pipe(manifest: Path, weights: Path) -> None:
    manifest.unlink()
    os.mkfifo(manifest)


def older_layout(manifest: Path, weights: Path) -> None:
    content = json.loads(manifest.read_text())
    content["copy"]["versions"]["layout"] = "1"
    manifest.write_text(json.dumps(content))


def other_versions(manifest: Path, weights: Path) -> None:
    content = json.loads(manifest.read_text())
    content["copy"]["versions"]["bitsandbytes"] = "0.1"
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (cut_short, "incomplete"),
        (one_bit, "damaged"),
        (no_weights, "cannot be read"),
        (no_manifest, "manifest"),
        (no_json, "manifest"),
        (a_list, "manifest"),
        (nested, "manifest"),
        (many_digits, "manifest"),
        (wrong_types, "file layout has changed"),
        (a_pipe, "manifest"),
        (older_layout, "file layout has changed"),
        (other_versions, "library versions have changed"),
    ],
)
def test_what_is_broken_or_stale_is_made_again_with_a_word(loads: Loads, spoil, word: str) -> None:
    loads.open()
    spoil(*files_of())
    assert loads.open() == HEADER + CONTENT
    assert loads.made == 2
    assert len(loads.said) == 1
    assert word in loads.said[0]
    loads.open()
    assert (loads.made, len(loads.said)) == (2, 1)


def test_a_copy_of_other_files_is_made_again(loads: Loads) -> None:
    loads.open()
    loads.open(replace(SPEC, files=(("model.safetensors", 9, 1),)))
    assert loads.made == 2
    assert "files have changed" in loads.said[0]


def test_a_file_that_was_only_touched_is_kept(loads: Loads) -> None:
    loads.open()
    os.utime(files_of()[1])
    loads.open()
    assert loads.made == 1


def test_damage_that_left_the_time_alone_is_found_on_request(loads: Loads) -> None:
    loads.open()
    weights = files_of()[1]
    modified = weights.stat().st_mtime_ns
    one_bit(*files_of())
    os.utime(weights, ns=(modified, modified))
    assert [kept.problem for kept in list_copies()] == [""]
    assert [kept.problem for kept in list_copies(verify=True)] == ["the file is damaged"]


def test_an_interrupt_leaves_nothing(loads: Loads) -> None:
    def interrupted(sink: HashingFile) -> None:
        sink.write(memoryview(HEADER))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_or_create(SPEC, interrupted, loads._told)
    assert [path.name for path in weights_folder().iterdir() if path.suffix != ".lock"] == []
    assert loads.open() == HEADER + CONTENT


SCRIPT = """
import sys, time
from pathlib import Path
from localgemma_cli.backends.pytorch.loading.quantized_cache import open_or_create
from test_quantized_cache import HEADER, CONTENT, SPEC

def make(sink):
    sink.write(memoryview(HEADER))
    sink._file.flush()
    print("making", flush=True)
    {during}
    sink.write(memoryview(CONTENT))

def told(progress):
    print(progress.stage, flush=True)

mapped = open_or_create(SPEC, make, told)
print(mapped is not None and bytes(mapped) == HEADER + CONTENT, flush=True)
"""


def another_process(during: str, **options: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    code = SCRIPT.format(during=during)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, **options
    )


def lines(process: subprocess.Popen) -> list[str]:
    return process.communicate(timeout=600)[0].splitlines()


@pytest.fixture
def killed() -> Iterator[None]:
    process = another_process("time.sleep(600)")
    assert process.stdout.readline() == "making\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return


def test_what_a_killed_process_left_is_not_loaded_and_goes_away(loads: Loads, killed: None) -> None:
    drafts = list(weights_folder().glob(".*.tmp"))
    assert len(drafts) == 1
    assert list_copies() == ()
    assert loads.open() == HEADER + CONTENT
    assert (loads.made, loads.said) == (1, [])
    assert not drafts[0].exists()


def test_of_two_processes_one_makes_the_copy_and_the_other_waits_for_it(tmp_path: Path) -> None:
    told = tmp_path / "told"

    class Telling(Loads):
        def _told(self, progress: LoadProgress) -> None:
            super()._told(progress)
            told.touch()

    loads = Telling()
    process = another_process(f"while not Path({str(told)!r}).exists(): time.sleep(0.01)")
    assert process.stdout.readline() == "making\n"
    assert loads.open() == HEADER + CONTENT
    assert (loads.made, loads.said) == (
        0,
        ["waiting for another localgemma process that is quantizing this model"],
    )
    assert lines(process) == ["True"]


def test_a_full_disk_is_said_and_leaves_nothing() -> None:
    """A limit on the size of files stands for it: writing fails half way, as it does there."""
    process = another_process(
        "pass", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4200, 4200))
    )
    said = lines(process)
    assert said[0] == "making"
    assert said[1].startswith("cannot save the 4-bit weights: ")
    assert said[2] == "False"
    assert [path.name for path in weights_folder().iterdir() if path.suffix != ".lock"] == []


def test_more_than_the_disk_has_is_not_begun(loads: Loads) -> None:
    assert loads.open(replace(SPEC, size=1 << 60)) is None
    assert loads.made == 0
    assert "not enough free disk space" in loads.said[0]


def test_a_folder_that_cannot_be_made_is_said(loads: Loads, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    assert loads.open() is None
    assert loads.said[0] == f"cannot save the 4-bit weights: {tmp_path / 'home' / 'cache'}: Not a directory"


def test_copies_are_listed_and_removed(loads: Loads) -> None:
    assert list_copies() == ()
    loads.open()
    (kept,) = list_copies()
    assert (kept.model, kept.problem) == ("tiny", "")
    assert 5096 < kept.size < 7000
    no_json(*files_of())
    (broken,) = list_copies()
    assert broken.problem == "the manifest cannot be read"
    remove_copy(broken)
    assert list_copies() == ()


@pytest.mark.parametrize("spoil", [nested, many_digits, wrong_types, a_pipe])
def test_any_manifest_can_be_listed_and_removed(loads: Loads, spoil) -> None:
    loads.open()
    spoil(*files_of())
    (broken,) = list_copies()
    assert broken.problem == "the manifest cannot be read"
    assert isinstance(broken.model, str)
    remove_copy(broken)
    assert list_copies() == ()


def test_a_map_outlives_its_copy(loads: Loads) -> None:
    mapped = open_or_create(SPEC, loads._make, loads._told)
    remove_copy(list_copies()[0])
    assert bytes(mapped) == HEADER + CONTENT


def test_a_source_is_a_commit_of_the_hub_or_a_folder_with_its_times(tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "ab" * 20
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"123")
    assert identify_source("org/name", snapshot) == (f"org/name@{commit}", (("model.safetensors", 3, 0),))
    name, files = identify_source("other/name", snapshot)
    assert name == str(snapshot)
    assert files[0][2] == (snapshot / "model.safetensors").stat().st_mtime_ns
    os.utime(snapshot / "model.safetensors", ns=(0, files[0][2] + 1_000_000_000))
    assert identify_source("other/name", snapshot)[1] != files


def test_a_copy_in_an_older_layout_is_named_and_goes_when_any_other_of_its_model_is_made(
    loads: Loads,
) -> None:
    older = replace(SPEC, form={"quantization": "int4", "layout": "32 rows, groups of 64"})
    loads.open(older)
    older_layout(*files_of(older))
    loads.open(replace(SPEC, source="org/other@" + "0" * 40))
    assert "the file layout has changed" in {copy.problem for copy in list_copies()}
    loads.open()
    assert {copy.problem for copy in list_copies()} == {""}
    assert len(list_copies()) == 2
