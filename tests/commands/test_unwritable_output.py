"""A full disk behind stdout, or a closed stdout, is exit code 1 with one plain message."""

import json
import os

import pytest
from support.program import COMMAND, Program

FULL = pytest.param(">/dev/full", "Cannot write the output: No space left on device.", id="full")
CLOSED = pytest.param(">&-", "Cannot write the output: stdout is closed.", id="closed")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(("where", "message"), [FULL, CLOSED])
@pytest.mark.parametrize("words", ["--help", "prompt -m demo Hello", "history show --json 1"])
def test_output_that_cannot_be_written_is_exit_1(
    program: Program, words: str, where: str, message: str
) -> None:
    if words.startswith("history"):
        chat = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        (program.folder / "chat.json").write_text(chat)
        assert program("history", "import", "chat.json").returncode == 0
    done = program.shell(f"{' '.join(COMMAND)} {words} {where}")
    assert (done.returncode, done.stdout) == (1, "")
    if "--json" in words:
        assert json.loads(done.stderr)["error"]["message"] == message
    else:
        assert done.stderr.splitlines()[0] == f"localgemma: {message}"
        assert len(done.stderr.splitlines()) == 2
