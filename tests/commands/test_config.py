"""`localgemma config`: the folder, the values and their places, and the editor."""

import json
import stat
import tomllib

import pytest
from support.program import Program

from localgemma_cli.command_options import options_of


def test_path_is_the_folder_of_config_toml(program: Program) -> None:
    done = program("config", "path")
    assert (done.returncode, done.stdout) == (0, f"{program.config}\n")


def test_show_says_where_each_value_comes_from(program: Program) -> None:
    (program.config / "config.toml").write_text('top-p = 0.9\nmodel = "2b"\nplain = true\n')
    program = program.with_environment(
        LOCALGEMMA_MODEL="demo", LOCALGEMMA_ENDPOINT="http://user:secret@host:1/v1"
    )
    shown = program("config", "show").stdout.splitlines()
    assert "model                demo  (LOCALGEMMA_MODEL)" in shown
    assert "top-p                0.9  (config.toml)" in shown
    assert "plain                true  (config.toml)" in shown
    assert "mode                 chat" in shown
    assert "max-new-tokens       fill the context" in shown
    assert "endpoint             http://***@host:1/v1  (LOCALGEMMA_ENDPOINT)" in shown
    assert program("config").stdout.splitlines() == shown
    rows = {row["option"]: row for row in json.loads(program("config", "show", "--json").stdout)["options"]}
    assert rows.keys() == {spec.key for spec in options_of("chat").values()}
    assert (rows["top-p"]["value"], rows["top-p"]["source"]) == (0.9, "config.toml")
    assert (rows["top-k"]["value"], rows["top-k"]["source"]) == (None, "default")


def test_edit_makes_a_file_of_comments_that_are_valid_when_uncommented(program: Program) -> None:
    editor = program.with_environment(EDITOR="sed -i -e 's/^# \\(top-p\\) = .*/\\1 = 0.5/'")
    done = editor("config", "edit")
    assert (done.returncode, done.stderr) == (0, "")
    file = program.config / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tomllib.loads(file.read_text()) == {"top-p": 0.5}
    for spec in options_of("chat").values():
        assert f"{spec.key} = " in file.read_text()
    assert program.with_environment(VISUAL="true", EDITOR="false")("config", "edit").returncode == 0
    assert tomllib.loads(file.read_text()) == {"top-p": 0.5}  # an existing file is kept


def test_edit_opens_a_damaged_file_and_reports_what_is_still_wrong(program: Program) -> None:
    file = program.config / "config.toml"
    file.write_text("[")
    assert program("config", "path").returncode == 0
    fixed = program.with_environment(EDITOR="sed -i s/.*/top-p=1/")("config", "edit")
    assert (fixed.returncode, file.read_text()) == (0, "top-p=1")
    file.write_text("colour = 1\n")
    for words in (["config", "edit"], ["config", "show"]):
        done = program.with_environment(EDITOR="true")(*words)
        assert done.returncode == 2
        assert f"{file}: unknown option 'colour'." in done.stderr
        assert "Allowed: accessible, adapter, " in done.stderr


@pytest.mark.parametrize(
    ("environment", "code", "word"),
    [
        ({"EDITOR": "", "VISUAL": ""}, 2, "No editor is set."),
        ({"EDITOR": "no-such-editor -x"}, 2, "Cannot start the editor 'no-such-editor -x': No such file"),
        ({"EDITOR": "'"}, 2, "Cannot start the editor"),
        ({"EDITOR": "false"}, 1, "The editor failed with exit code 1."),
    ],
    ids=["none", "missing", "quotes", "failed"],
)
def test_an_editor_that_does_not_start(
    program: Program, environment: dict[str, str], code: int, word: str
) -> None:
    done = program.with_environment(**environment)("config", "edit")
    assert done.returncode == code
    assert word in done.stderr


def test_every_command_of_it_has_an_example(program: Program) -> None:
    for words in ([], ["path"], ["show"], ["edit"]):
        assert "Example: " in program("config", *words, "--help").stdout
