"""The built-in presets, and the validation of the user's own."""

from pathlib import Path

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.planning.presets import BUILT_IN, find_preset, load_presets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def refusal(folder: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_presets(folder)
    return caught.value


def test_the_built_in_presets_have_their_documented_settings(folder):
    presets = load_presets(folder)
    assert tuple(presets) == BUILT_IN
    for device in ("cuda", "mps", "cpu"):
        exact, speed = presets["exact"].devices[device], presets["speed"].devices[device]
        memory, extreme = presets["memory"].devices[device], presets["memory_extreme"].devices[device]
        assert (exact.quantization, exact.attention) == ("none", "eager")
        assert (exact.offload, exact.dtype) == ("none", "native")
        assert speed.quantization == "none"
        assert (exact.compact, speed.compact) == (False, device == "cpu")
        rolls_back = {"cuda": "static", "mps": "full", "cpu": "int8"}[device]
        assert memory.quantization == extreme.quantization == "4-bit"
        assert (memory.nested_quantization, memory.cache) == (False, rolls_back)
        least = "least" if device == "cpu" else "sliding"
        assert (extreme.nested_quantization, extreme.cache) == (True, least)


def test_only_a_gpu_is_compiled_for_and_offloads_to_its_host(folder):
    presets = load_presets(folder)
    speed, extreme = presets["speed"].devices, presets["memory_extreme"].devices
    exact = presets["exact"].devices
    assert (speed["cuda"].cache, speed["cuda"].compile) == ("static", "reduce-overhead")
    assert (exact["cuda"].cache, exact["cuda"].compile) == ("static", "graph")
    memory = presets["memory"].devices
    assert memory["cuda"].compile == "graph"
    for preset in (speed, exact, memory):
        assert {preset[each].compile for each in ("mps", "cpu")} == {"none"}
        assert {preset[each].cache for each in ("mps", "cpu")} <= {"full", "int8"}
    assert [extreme[each].offload for each in ("cuda", "mps", "cpu")] == ["auto", "none", "disk"]


def test_a_missing_folder_is_not_an_error(folder):
    assert tuple(load_presets(folder / "none")) == BUILT_IN


def test_the_users_presets_are_found_in_the_config_folder(folder, monkeypatch):
    monkeypatch.setenv("LOCALGEMMA_HOME", str(folder))
    (folder / "config" / "presets").mkdir(parents=True)
    (folder / "config" / "presets" / "small.toml").write_text('inherits = "memory"\n')
    assert "small" in load_presets()


def test_a_preset_overrides_what_it_inherits(folder):
    (folder / "small.toml").write_text(
        'summary = "mine"\ninherits = "speed"\ncache = "sliding"\n[cpu]\ncache = "full"\n'
    )
    (folder / "smaller.toml").write_text('inherits = "small"\n[cuda]\ncompile = "none"\n')
    presets = load_presets(folder)
    small, smaller = presets["small"].devices, presets["smaller"].devices
    # Its plain `cache` beats even the [cuda] table of the preset it inherits.
    assert [small[each].cache for each in ("cuda", "mps", "cpu")] == ["sliding", "sliding", "full"]
    assert (small["cuda"].compile, smaller["cuda"].compile) == ("reduce-overhead", "none")
    assert (smaller["cuda"].cache, presets["smaller"].summary) == ("sliding", "mine")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('inherits = "memory"\ncach = "full"\n', ("unknown key 'cach'", "cache")),
        (
            'inherits = "memory"\ncache = "huge"\n',
            ("cache cannot be 'huge'", "least, full, int8, sliding, static"),
        ),
        ('inherits = "memory"\n[cuda]\ncach = "full"\n', ("unknown key 'cuda.cach'", "cache")),
        ('inherits = "memory"\n[cpu]\nattention = 3\n', ("cpu.attention cannot be 3", "eager")),
        (
            'inherits = "memory"\nnested_quantization = 1\n',
            ("nested_quantization cannot be 1", "true, false"),
        ),
        ('inherits = "memory"\ncuda = "full"\n', ("cuda must be a table", "[cuda]")),
        ("inherits = 3\n", ("inherits must be text", "quotation marks")),
        ('inherits = "nobody"\n', ("unknown preset: 'nobody'", "memory_extreme")),
        ('inherits = "mine"\n', ("inherits itself: mine → mine", "inherits")),
        ('cache = "full"\n', ("missing keys: dtype", 'inherits = "memory"')),
        ('cache = "full"\ndtype = \n', ("line 2", "Correct")),
        ('inherits = "memory"\n\ncache = [', ("line 3", "Correct")),
    ],
)
def test_a_mistake_is_reported_with_file_key_and_allowed_values(folder, text, named):
    (folder / "mine.toml").write_text(text)
    error = refusal(folder)
    assert str(folder / "mine.toml") in error.message
    assert named[0] in error.message
    assert named[1] in error.hint


def test_an_inheritance_cycle_is_reported(folder):
    (folder / "one.toml").write_text('inherits = "two"\n')
    (folder / "two.toml").write_text('inherits = "one"\n')
    assert "one → two → one" in refusal(folder).message


def test_a_built_in_name_cannot_be_taken(folder):
    (folder / "exact.toml").write_text('inherits = "memory"\n')
    error = refusal(folder)
    assert "built-in" in error.message
    assert 'inherits = "exact"' in error.hint


def test_a_binary_file_is_reported_by_name(folder):
    (folder / "mine.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(folder).message


def test_an_unknown_preset_is_answered_with_the_known_ones(folder):
    with pytest.raises(UsageError, match="Unknown preset: 'fast'") as caught:
        find_preset("fast", load_presets(folder))
    assert "exact, speed, memory, memory_extreme" in caught.value.hint
