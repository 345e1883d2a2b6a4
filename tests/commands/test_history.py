"""`localgemma history` as a process of its own."""

import json
import shlex
from pathlib import Path

import pytest
from support.chat_server import ChatServer, sse
from support.program import COMMAND, Program
from support.terminal import Terminal

from localgemma_cli.conversation import Message, Turn
from localgemma_cli.sessions.store import Store


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def store(program: Program) -> Store:
    store = Store(program.folder / "home" / "data" / "conversations.sqlite")
    store.add(
        store.create("Be kind.", name="rivers"),
        Turn(Message("user", "Name a \x1b[2J river"), Message("assistant", "The **Danube**."), "stop"),
        "google/gemma-2-2b-it",
    )
    store.add(
        store.create(None),
        Turn(Message("user", "And a lake?"), Message("assistant", "Lake Con"), "interrupted"),
        "demo",
    )
    return store


def test_list_is_latest_first_and_cannot_drive_the_terminal(program: Program, store: Store) -> None:
    done = program("history", "list")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert "And a lake?" in first
    assert "rivers: Name a ␛[2J river" in second
    assert [
        each["id"] for each in json.loads(program("history", "list", "--json").stdout)["conversations"]
    ] == [2, 1]
    assert "lake" not in program("history", "list", "danube").stdout


def test_where_nothing_is_found_that_is_said(program: Program) -> None:
    for words, said in (
        ([], "There are no saved conversations yet."),
        (["list", "danube"], "No saved conversation matches."),
        (["search", "danube"], "No saved conversation matches."),
    ):
        done = program("history", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{said}\n")
    assert program("history", "list", "--json").stderr == ""


def test_show_by_name_or_number(program: Program, store: Store) -> None:
    assert program("history", "show", "rivers").stdout == program("history", "show", "1").stdout
    assert "## Gemma\n\nThe **Danube**." in program("history", "show", "1").stdout
    roles = [m["role"] for m in json.loads(program("history", "show", "1", "--json").stdout)["messages"]]
    assert roles == ["system", "user", "assistant"]


def test_going_on_takes_the_model_that_answered_last(program: Program, store: Store) -> None:
    done = program("-c", "--json", "And a river?")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "demo"
    shown = program("--session", "2", "--json", "-m", "nosuch", "And a river?")
    assert "nosuch" in shown.stderr


def test_an_adapter_beside_what_is_gone_on_with_has_its_own_base(program: Program, store: Store) -> None:
    folder = program.folder / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/gone/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    done = program("-c", "--adapter", str(folder), "And a river?")
    assert done.returncode == 4
    assert "/gone/base" in done.stderr


def test_search(program: Program, store: Store) -> None:
    assert "Danube" in program("history", "search", "dan").stdout
    assert json.loads(program("history", "search", "--json", "lake").stdout)["turns"] == [
        {"conversation": 2, "question": "And a lake?", "answer": "Lake Con"}
    ]


@pytest.mark.parametrize("name", ["c.md", "c.json", "c.jsonl"])
def test_export_and_import_bring_it_back(program: Program, store: Store, name: str) -> None:
    assert program("history", "export", "2", name).returncode == 0
    assert (program.folder / name).stat().st_mode & 0o777 == 0o600
    done = program("history", "import", name, "--name", "back")
    assert done.stderr == "saved as conversation 3\n"
    before, after = store.conversation(2, ""), store.conversation(store.find("back"), "")
    assert [(t.question, t.answer, t.finish_reason) for t in after.turns] == [
        (t.question, t.answer, t.finish_reason) for t in before.turns
    ]


def test_export_never_overwrites(program: Program, store: Store) -> None:
    (program.folder / "mine.md").write_text("mine")
    done = program("history", "export", "1", "mine.md")
    assert (done.returncode, (program.folder / "mine.md").read_text()) == (2, "mine")


def test_remove(program: Program, store: Store) -> None:
    refused = program("history", "rm", "rivers", "2")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "localgemma history rm --yes rivers 2" in refused.stderr
    done = program("history", "rm", "--yes", "rivers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "removed 1  1 turn  rivers: Name a ␛[2J river\nremoved 2  1 turn  And a lake?\n"
    assert program("history").stdout == ""  # as `history list`


def test_a_terminal_is_asked_before_conversations_go(program: Program, store: Store) -> None:
    for answer, code, left in (("\r", 0, 2), ("\x03", 130, 2), ("y\r", 0, 1)):
        with Terminal(program, ["history", "rm", "rivers"]) as terminal:
            asked = terminal.wait(r"\[y/N\]")
            assert "rivers: Name a" in asked
            terminal.type(answer)
            assert terminal.wait_for_end() == code
        assert len(store.summaries()) == left
    assert "removed 1" in terminal.text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("show", "nothing"), 4),
        (("rm", "99"), 4),
        (("export", "1", "notes.txt"), 2),
        (("export", "1", "no/such/folder/a.md"), 1),
        (("import", "missing.md"), 4),
    ],
)
def test_errors_say_what_to_do(program: Program, store: Store, words: tuple[str, ...], code: int) -> None:
    done = program("history", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 2


def test_a_folder_without_permission_is_an_error_with_a_hint(program: Program) -> None:
    (program.folder / "home").mkdir(parents=True)
    (program.folder / "home" / "data").write_text("a file where the folder should be")
    done = program("history", "list")
    assert done.returncode == 1
    assert "cannot be saved" in done.stderr


def test_a_title_goes_with_the_conversation_and_show_hides_nothing(program: Program, store: Store) -> None:
    said = "0 --> 1 --> 2\n<!-- keep me -->\r\n\nend  "
    id = store.create(None, title="Arrows & <!-- 0 -->")
    store.add(id, Turn(Message("user", said), Message("assistant", said), "length"), "demo")
    assert program("history", "export", str(id), "a.md").returncode == 0
    assert program("history", "import", "a.md").returncode == 0
    assert store.conversation(id + 1, "").title == "Arrows & <!-- 0 -->"
    assert store.conversation(id + 1, "").turns[0].question.content == said
    assert program("history", "show", str(id)).stdout.count("<!-- keep me -->") == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("history", "show", "9" * 5000), 4),
        (("--session", "2026", "-m", "demo", "hi"), 4),
        (("history", "import", "endless.jsonl"), 2),
        (("-m", "demo", "--system-file", "/dev/zero", "hi"), 2),
    ],
)
def test_what_has_no_end_is_one_line(
    program: Program, store: Store, words: tuple[str, ...], code: int
) -> None:
    (program.folder / "endless.jsonl").symlink_to("/dev/zero")
    done = program(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 2
    assert len(done.stderr) < 500


def test_without_room_the_answer_is_given_and_the_exit_code_says_it_is_not_saved(
    program: Program, store: Store
) -> None:
    store.close()
    with ChatServer() as server:
        server.answers(sse("Hello"))
        words = [*COMMAND, "--endpoint", server.url, "--session", "rivers", "-"]
        done = program.shell(
            f"ulimit -f 32; exec {shlex.join(words)}", stdin="Hello " * 20_000
        )  # more than the limit holds, however little else is written
    assert done.returncode == 1, done.stderr
    assert done.stdout.strip()
    assert "cannot be used" in done.stderr
