"""Names from outside through every command: nothing of them drives the terminal, or begins a line of ours."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support.models import DEMO

from localgemma_cli.backends.http.dialect import ServerError
from localgemma_cli.cli import ErrorStyle, _report, run
from localgemma_cli.conversation import Message, Turn
from localgemma_cli.environment import LibraryStream, Streams, standard_streams
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.sessions.store import Store, default_path

FORGED = "localgemma: forged"
EVIL = f"x\x1b]52;c;UFdO\x07\x9b2J\u202e\x7f\r\n{FORGED}"
FILE = EVIL.replace("/", "")
RAW = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F))} - {"\n", "\t"}


OWN_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of tables and messages; there are none in the name


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def everyone(kind: type[LocalGemmaError]) -> list[type[LocalGemmaError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in everyone(sub))]


@pytest.mark.parametrize("kind", everyone(LocalGemmaError), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "style", [ErrorStyle(False, False), ErrorStyle(False, True), ErrorStyle(True, False)]
)
def test_every_error_is_printed_safely(kind: type[LocalGemmaError], style: ErrorStyle) -> None:
    streams = Streams(io.StringIO(), Tty(), Tty())
    error = ServerError(EVIL) if kind is ServerError else kind(EVIL, EVIL)
    with pytest.raises(kind) as caught:
        raise error from ValueError(EVIL)
    assert _report(caught.value, style, streams) == kind.exit_code
    told = OWN_COLOURS.sub("", streams.stderr.getvalue())  # type: ignore[attr-defined]
    assert FORGED in told or kind is ServerError  # whose words others quote
    assert not RAW & set(told)
    assert style.verbose or not any(line.startswith(FORGED) for line in told.splitlines())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "home" / "config"
    (config / "presets").mkdir(parents=True)
    key = json.dumps(EVIL)
    (config / "models.toml").write_text(f"[{key}]\nrepository = {key}\ntemplate = 'raw'\n")
    store = Store(default_path())
    turn = Turn(Message("user", EVIL), Message("assistant", EVIL), "stop")
    store.add(store.create(EVIL, name=FILE, title=EVIL), turn, EVIL)
    store.close()
    model = tmp_path / FILE
    shutil.copytree(DEMO, model)
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + EVIL + "') }}")
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text(json.dumps({"model_type": EVIL, "architectures": [EVIL]}))
    (tmp_path / "mine.jinja").write_text("{{ raise_exception('" + EVIL + "') }}")
    (tmp_path / "lost.md").write_text(EVIL)
    return tmp_path


COMMANDS = {
    "history list": ["history", "list"],
    "history list --json": ["history", "list", "--json"],
    "history show": ["history", "show", FILE],
    "history show --json": ["history", "show", FILE, "--json"],
    "history search": ["history", "search", "forged"],
    "history export": ["history", "export", FILE],
    "history no name": ["history", "show", EVIL + "y"],
    "history rm": ["history", "rm", EVIL + "y", "--yes"],
    "history import": ["history", "import", EVIL],
    "history import lost": ["history", "import", "lost.md"],
    "models list": ["models", "list"],
    "models list --json": ["models", "list", "--json"],
    "models rm": ["models", "rm", EVIL],
    "pull": ["models", "pull", EVIL, "--offline"],
    "plan own": ["plan", "-m", EVIL, "--offline"],
    "plan folder": ["plan", "-m", f"./{FILE}", "--all"],
    "plan strange": ["plan", "-m", "./strange"],
    "plan forced": ["plan", "-m", "./strange", "--force"],
    "plan -v": ["plan", "-m", "./strange", "-v"],
    "preset": ["plan", "-m", "demo", "--preset", EVIL],
    "device": ["plan", "-m", "demo", "--device", EVIL],
    "memory": ["plan", "-m", "demo", "--device-memory", EVIL],
    "adapter": ["plan", "-m", "demo", "--adapter", f"./{FILE}"],
    "revision": ["plan", "-m", "a/b", "--revision", EVIL, "--offline"],
    "prompt": ["prompt", "-m", "demo", EVIL],
    "prompt --json": ["prompt", "-m", "demo", "--json", EVIL],
    "prompt template": ["prompt", "-m", f"./{FILE}", "hi"],
    "prompt file": ["prompt", "-m", "demo", "--template", "mine.jinja", "hi"],
    "prompt no file": ["prompt", "-m", "demo", "--template", f"{FILE}.jinja", "hi"],
    "file": ["-m", "demo", "-f", EVIL, "hi there"],
    "system file": ["-m", "demo", "--system-file", EVIL, "hi there"],
    "endpoint": ["--endpoint", EVIL, "hi there"],
    "endpoint path": ["--endpoint", f"http://127.0.0.1:9/{EVIL}", "hi there"],
    "session": ["-q", "--session", EVIL, "-m", EVIL, "hi there", "--offline"],
    "option": [f"--{EVIL}"],
    "number": ["--temperature", EVIL],
    "subcommand": ["history", EVIL],
    "word": ["plan", EVIL],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_writes_a_name_raw(home: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Tty(), Tty()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", LibraryStream(err, shown=False))
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        run(words, standard_streams())
    told = OWN_COLOURS.sub("", out.getvalue() + err.getvalue())
    assert told
    assert not RAW & set(told)
    assert "Unexpected error" not in told
    own = err.getvalue() if words[:1] == ["prompt"] or "-v" in words or "show" in words else told
    assert not any(line.startswith(FORGED) for line in own.splitlines())


@pytest.mark.parametrize("name", ["models.toml", "config.toml", "presets/mine.toml"])
def test_no_file_of_the_users_own_brings_a_name_raw(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Tty(), Tty()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", LibraryStream(err, shown=False))
    file = home / "home" / "config" / name
    for text in (f"{json.dumps(EVIL)} = 1\n", f"[mine]\n{json.dumps(EVIL)} = 1\n", EVIL):
        file.write_text(text)
        run(["plan", "-m", "mine", "--offline"], standard_streams())
        told = OWN_COLOURS.sub("", out.getvalue() + err.getvalue())
        assert told
        assert not RAW & set(told)
        assert not any(line.startswith(FORGED) for line in told.splitlines())
