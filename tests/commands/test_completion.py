"""Completion in shells, by the scripts that the program itself writes."""

import shutil
import subprocess

import pytest
from support.program import COMMAND, Program


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
