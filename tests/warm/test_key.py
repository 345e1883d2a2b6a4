"""What makes a kept model another one: options, files, versions; and how long it is kept."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.options import Options
from localgemma_cli.warm import inputs, key
from localgemma_cli.warm.inputs import input_paths, read_stamps
from localgemma_cli.warm.key import kept_key, parse_keep_alive

OPTIONS = Options(model="demo", keep_alive="10m")


def key_of(options: Options = OPTIONS, *typed: str, **environ: str) -> str:
    return kept_key(options, dict.fromkeys(typed, "COMMANDLINE"), environ)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "2b"},
        {"preset": "exact"},
        {"dtype": "float32"},
        {"quantization": "int4"},
        {"device": "cpu"},
        {"context": 512},
        {"attention": "eager"},
        {"compile": False},
        {"assistant": "lookup"},
        {"adapter": "a/b"},
        {"revision": "main"},
        {"template": "raw"},
        {"host_memory": "1GiB"},
    ],
    ids=str,
)
def test_an_option_of_the_plan_is_part_of_the_key(changed: dict[str, object]) -> None:
    assert key_of(replace(OPTIONS, **changed)) != key_of()  # type: ignore[arg-type]  # of each field


def test_an_option_of_one_answer_is_not_part_of_the_key() -> None:
    other = replace(OPTIONS, temperature=0.1, session="a", json=True, keep_alive="1h", system="x", quiet=True)
    assert key_of(other) == key_of()


def test_a_model_that_a_saved_prompt_or_a_variable_names_is_the_same_model() -> None:
    assert key_of(OPTIONS, "model") == key_of()


def test_versions_folders_and_variables_are_parts_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({key_of(), key_of(OPTIONS, "preset"), key_of(OMP_NUM_THREADS="7"), key_of(HF_HOME="/x")}) == 4
    assert key_of(EDITOR="vi") == key_of()
    before = key_of()
    monkeypatch.setattr(key, "__version__", "9.9")
    assert key_of() != before


def test_the_same_relative_path_in_another_folder_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        keys |= {key_of(replace(OPTIONS, model="model")), key_of(replace(OPTIONS, model="model"))}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("2h", 7200), ("1d", 86400), ("45", 45), ("1.5m", 90), ("0", 0), ("off", 0)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_keep_alive(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "10 weeks", "1e9", "366d", "m", "nan"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--keep-alive must be a time"):
        parse_keep_alive(text)


def test_a_change_of_a_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    snapshot = tmp_path / "models--a/snapshots/1"
    refs = tmp_path / "models--a/refs"
    for folder in (snapshot, refs, tmp_path / "home/config/presets"):
        folder.mkdir(parents=True)
    (snapshot / "weights").write_text("1")
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.setattr(inputs, "PACKAGE", code)
    monkeypatch.chdir(snapshot.parent)
    paths = input_paths((Path(snapshot.name), None), "auto")
    monkeypatch.chdir(tmp_path)  # as the process does
    changes = [
        lambda: (snapshot / "weights").write_text("22"),
        lambda: os.utime(snapshot / "weights", (1, 1)),
        lambda: (snapshot / "more").write_text(""),
        lambda: (snapshot / "more").unlink(),
        lambda: (refs / "main").write_text("2"),
        lambda: (tmp_path / "home/config/models.toml").write_text(""),
        lambda: (tmp_path / "home/config/presets/mine.toml").write_text(""),
        lambda: (code / "new.py").write_text(""),
    ]
    for change in changes:
        before = read_stamps(paths)
        assert read_stamps(paths) == before
        change()
        assert read_stamps(paths) != before
