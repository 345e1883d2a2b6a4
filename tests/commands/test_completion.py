"""Completion in shells, by the scripts that the program itself writes."""

import shutil
import subprocess
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from support.program import COMMAND, Program, completed

from localgemma_cli.chat.terminal.completion import ChatCompleter
from localgemma_cli.commands.shell_values import join_at_colons
from localgemma_cli.sessions.store import Store


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(program: Program, shell: str) -> None:
    script = program.with_environment(_LOCALGEMMA_COMPLETE=f"source_{shell}")().stdout
    assert f"_LOCALGEMMA_COMPLETE=complete_{shell}" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0


def test_bash_completes_commands_and_options(program: Program) -> None:
    tool = program.folder / "localgemma"
    tool.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    tool.chmod(0o700)
    script = """
eval "$(_LOCALGEMMA_COMPLETE=source_bash localgemma)"
complete -p localgemma >/dev/null || exit 1
handler=$(complete -p localgemma | sed 's/.*-F \\([^ ]*\\).*/\\1/')
for line in "localgemma his" "localgemma --acc" "localgemma history ex"; do
  COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  "$handler" localgemma; echo "${COMPREPLY[@]}"
done
"""
    env = {**program.env, "PATH": f"{program.folder}:{program.env['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, cwd=program.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["history", "--accessible", "export"]


def test_values_are_completed_without_importing_anything_heavy(program: Program) -> None:
    (program.config / "models.toml").write_text('[mine]\nrepository = "demo"\n')
    presets = program.config / "presets"
    presets.mkdir()
    (presets / "my-own.toml").write_text('inherits = "memory"\n')
    (program.config / "prompts").mkdir()
    (program.config / "prompts" / "translate.toml").write_text('prompt = "{input}"\n')
    (program.folder / "hub" / "hub" / "models--google--gemma-2-2b-it" / "blobs").mkdir(parents=True)
    (program.folder / "hub" / "hub" / "models--me--moon" / "blobs").mkdir(parents=True)
    store = Store(program.folder / "home" / "data" / "conversations.sqlite")
    store.create(None, name="rivers")
    store.create(None, name="trip to $(Rome)")
    store.close()
    assert completed(program, "-m", "m") == ["mine", "me/moon"]
    assert completed(program, "--preset", "m") == ["memory", "memory_extreme", "my-own"]
    assert completed(program, "-p", "t") == ["translate"]
    assert completed(program, "prompts", "rm", "t") == ["translate"]
    assert completed(program, "--template", "al") == ["alpaca", "alpaca-chat"]
    assert completed(program, "--session", "r") == ["rivers"]
    assert completed(program, "--session", "trip\\ t") == [r"trip\ to\ \$\(Rome\)"]  # bash takes it as it is
    assert completed(program, "--session", "'tr") == ["trip to $(Rome)"]
    assert completed(program, "history", "rm", '"tr') == [r"trip to \$(Rome)"]
    assert completed(program, "history", "show", "r") == ["rivers"]
    assert completed(program, "models", "rm", "") == ["2b", "me/moon"]
    assert completed(program, "models", "pull", "system-2") == ["system-2b", "system-27b"]
    (program.config / "models.toml").write_text("[mine")
    assert completed(program, "-m", "m") == []


@pytest.mark.parametrize(
    ("words", "place", "joined", "typing"),
    [
        (["lg", "-m", "o/r", ":", "Q4"], 4, ["lg", "-m", "o/r:Q4"], 2),
        (["lg", "-m", "o/r", ":"], 3, ["lg", "-m", "o/r:"], 2),
        (["lg", "-m", "o/r", ":", "Q4", "-p", ""], 6, ["lg", "-m", "o/r:Q4", "-p", ""], 4),
        (["lg", "-m", "o/r", ":", ""], 4, ["lg", "-m", "o/r:", ""], 3),
        (["lg", "--endpoint", "http", ":", "//a", ":", "80"], 6, ["lg", "--endpoint", "http://a:80"], 2),
        (["lg", "-m", "o/r"], 2, ["lg", "-m", "o/r"], 2),
    ],
)
def test_words_that_bash_splits_at_colons_are_joined(
    words: list[str], place: int, joined: list[str], typing: int
) -> None:
    environ = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(place)}
    join_at_colons(environ)
    assert environ == {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(typing)}


@pytest.mark.parametrize("content", [b"no database " * 100, None], ids=["not a database", "damaged page"])
def test_completion_leaves_a_damaged_file_of_conversations_where_it_is(
    program: Program, content: bytes | None
) -> None:
    path = program.folder / "home" / "data" / "conversations.sqlite"
    store = Store(path)
    store.create(None, name="rivers")
    store.close()
    damaged = content or path.read_bytes()[:100] + b"\xff" * 2000 + path.read_bytes()[2100:]
    path.write_bytes(damaged)
    assert completed(program, "--session", "r") == []
    assert completed(program, "history", "show", "r") == []
    assert path.read_bytes() == damaged
    assert not list(path.parent.glob("*-damaged-*"))
    assert "damaged" in program("history", "list", stdin="").stderr  # a command moves it away, and says so


def test_in_the_chat_models_are_completed_and_a_folder_ends_in_a_slash(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    completer = ChatCompleter(("temperature",), lambda: ["rivers"])

    def offered(text: str) -> list[str]:
        return [each.text for each in completer.get_completions(Document(text), CompleteEvent())]

    assert offered(f"/file {tmp_path}/f") == [f"{tmp_path}/file.txt", f"{tmp_path}/folder/"]
    assert offered(f"see @{tmp_path}/fo") == [f"{tmp_path}/folder/"]
    assert "27b" in offered("/model 2")
    assert offered("/load r") == ["rivers"]
