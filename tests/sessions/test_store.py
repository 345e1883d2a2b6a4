"""Saved conversations: real SQLite files, real processes that are killed, writers that race."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import NotFoundError, SavingError, UsageError
from localgemma_cli.sessions.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "conversations.sqlite"


def turn(question: str, answer: str, ids: tuple[int, ...] | None = None) -> Turn:
    return Turn(Message("user", question), Message("assistant", answer, ids), "stop")


def said(store: Store, session: int, model: str = "m") -> list[tuple[str, str, str]]:
    turns = store.conversation(session, model).turns
    return [(each.question.content, each.answer.content, each.finish_reason) for each in turns]


def test_turns_come_back_as_they_were_said(path: Path) -> None:
    store = Store(path)
    session = store.create("Be kind.", name="greeting")
    store.add(session, turn("Hi\n there", "Hello 你好 🦜", (1, 255_999)), "google/gemma-2-2b-it")
    again = Store(path)
    conversation = again.conversation(again.find("greeting"), "google/gemma-2-2b-it")
    assert conversation.system == "Be kind."
    assert conversation.turns[0].answer == Message("assistant", "Hello 你好 🦜", (1, 255_999))
    assert again.find(str(session)) == session


def test_another_models_token_ids_are_not_used(path: Path) -> None:
    store = Store(path)
    session = store.create(None)
    store.add(session, turn("Hi", "Hello", (1, 2)), "one")
    assert store.conversation(session, "other").turns[0].answer.token_ids is None


def test_a_turn_that_was_never_finished_is_there_and_interrupted(path: Path) -> None:
    store = Store(path)
    session = store.create(None)
    id = store.begin(session, "Why?", "m")
    store.stream(id, "Because of")
    assert said(Store(path), session) == [("Why?", "Because of", "interrupted")]


def test_the_file_is_private(path: Path) -> None:
    Store(path).create(None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert all(each.stat().st_mode & 0o077 == 0 for each in path.parent.iterdir())


def test_lists_are_latest_first_and_titled_by_the_first_question(path: Path) -> None:
    store = Store(path)
    first, second = store.create(None), store.create(None, title="Given")
    store.add(second, turn("What is a cache?", "A store."), "m")
    store.add(first, turn("Hello\nworld", "Hi."), "m")
    assert [(each.id, each.title, each.turns) for each in store.summaries()] == [
        (first, "Hello world", 1),
        (second, "Given", 1),
    ]
    assert store.latest() == first


@pytest.mark.parametrize("query", ["rivers", "danu", "long rivers", 'the "long', "RHINE", "naive"])
def test_search_finds_words_in_any_part_of_a_turn(path: Path, query: str) -> None:
    store = Store(path)
    session = store.create(None)
    store.add(session, turn("Name the long rivers", "Rhine, Danube, a naïve one"), "m")
    store.add(store.create(None), turn("Something", "else"), "m")
    assert [found[0] for found in store.search(query)] == [session]
    assert [each.id for each in store.summaries(query)] == [session]


@pytest.mark.parametrize("query", ['"', "AND", "NEAR(", "col:x", "*", "-x", "'; DROP TABLE turns", "  "])
def test_a_query_is_only_words(path: Path, query: str) -> None:
    store = Store(path)
    store.add(store.create(None), turn("a", "b"), "m")
    assert store.search(query) == []


def test_search_follows_what_is_extended_and_removed(path: Path) -> None:
    store = Store(path)
    session = store.create(None)
    id = store.add(session, turn("q", "alpha"), "m")
    store.finish(id, Message("assistant", "alpha beta"), "stop")
    assert len(store.search("beta")) == len(store.search("alpha")) == 1
    store.remove_turns([id])
    assert store.search("alpha") == store.search("beta") == []
    open_turn = store.begin(session, "gamma", "m")
    store.stream(open_turn, "delta")
    assert len(store.search("delta")) == 1
    store.remove(session)
    assert store.search("gamma") == [] == store.summaries()
    assert integrity(path) == "ok"


def test_a_copy_is_a_conversation_of_its_own(path: Path) -> None:
    store = Store(path)
    session = store.create("S", name="one")
    store.add(session, turn("a", "b", (7,)), "m")
    copy, _ = store.copy(session, store.conversation(session, "m").turns, "m")
    store.remove(session)
    assert said(store, copy) == [("a", "b", "stop")]
    assert store.conversation(copy, "m").turns[0].answer.token_ids == (7,)


def test_a_name_belongs_to_one_conversation(path: Path) -> None:
    store = Store(path)
    store.create(None, name="x")
    other = store.create(None)
    with pytest.raises(SavingError, match="has that name"):
        store.rename(other, name="x")


@pytest.mark.parametrize("wanted", ["nothing", "99", "9" * 30, "²"])
def test_what_is_not_there_is_not_found(path: Path, wanted: str) -> None:
    with pytest.raises(NotFoundError, match="Saved conversation not found"):
        Store(path).find(wanted)


@pytest.mark.parametrize("damage", [b"this is not a database, and long enough to be read as one", None])
def test_a_damaged_file_is_set_aside_and_kept(path: Path, damage: bytes | None) -> None:
    store = Store(path)
    store.add(store.create(None), turn("a", "b" * 50_000), "m")
    store.close()
    content = damage or path.read_bytes()[:4096] + os.urandom(8192) + path.read_bytes()[12288:]
    path.write_bytes(content)
    store = Store(path)
    assert store.notice
    assert "damaged" in store.notice
    (aside,) = path.parent.glob("*-damaged-*.sqlite")
    assert aside.read_bytes() == content
    assert store.summaries() == []


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SavingError, match="later version"):
        Store(path)


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


WRITER = """
import sys, time
from pathlib import Path
from localgemma_cli.conversation import Message
from localgemma_cli.sessions.store import Store
path, session, name, count = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = Store(path)
for number in range(count):
    turn = store.begin(session, f"{name} {number}", "m")
    store.stream(turn, "half")
    store.finish(turn, Message("assistant", f"answer {name} {number}", (number,)), "stop")
    print(number, flush=True)
"""


def writer(path: Path, session: int, name: str, count: int) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-c", WRITER, str(path), str(session), name, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE)


def test_a_kill_at_any_moment_loses_no_finished_turn(path: Path) -> None:
    rng = random.Random(0)
    session = Store(path).create(None)
    finished: list[str] = []
    for round in range(50):
        process = writer(path, session, f"round{round}", 10_000)
        assert process.stdout
        process.stdout.readline()
        time.sleep(rng.random() * 0.03)
        process.kill()
        told = 1 + len(process.communicate()[0].decode().split())
        finished += [f"round{round} {number}" for number in range(told)]
    assert integrity(path) == "ok"
    kept = {question: answer for question, answer, reason in said(Store(path), session) if reason == "stop"}
    assert all(kept[question] == f"answer {question}" for question in finished)


def test_two_writers_on_one_session_lose_nothing(path: Path) -> None:
    session = Store(path).create(None)
    writers = [writer(path, session, name, 200) for name in ("a", "b")]
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    turns = said(Store(path), session)
    assert len(turns) == 400
    for name in ("a", "b"):
        own = [(question, answer) for question, answer, _ in turns if question.startswith(name)]
        assert own == [(f"{name} {number}", f"answer {name} {number}") for number in range(200)]


def test_a_number_is_never_a_name(path: Path) -> None:
    store = Store(path)
    store.create(None, name="trip")
    for make in (
        lambda: store.create(None, name="2"),
        lambda: store.session("2", None),
        lambda: store.rename(1, name="0002"),
        lambda: store.import_conversation(Conversation(None, (turn("q", "a"),)), "2"),
        lambda: store.create(None, name=" \n"),
    ):
        with pytest.raises(UsageError, match="name cannot be"):
            make()
    assert [each.handle for each in store.summaries()] == ["trip"]


def test_a_session_named_like_a_number_before_is_reached_by_its_own(path: Path) -> None:
    store = Store(path)
    store.create(None, name="first")
    named = store.create(None, name="two")
    with sqlite3.connect(path) as connection:  # as an earlier version could
        connection.execute("UPDATE sessions SET name = '1' WHERE id = ?", (named,))
        connection.execute("UPDATE sessions SET name = '77' WHERE id = 1")
    assert store.find("1") == 1
    assert store.find(str(named)) == named
    assert {each.handle for each in store.summaries()} == {"1", "2"}
    assert store.named("77") is None
    with pytest.raises(NotFoundError) as caught:
        store.find("77")
    assert "has the number 1" in caught.value.hint


def test_a_list_finds_names_and_titles_are_of_what_was_asked(path: Path) -> None:
    store = Store(path)
    file = "File notes.txt:\n```\nFile x:\nsecret\n```\n\n"
    store.add(store.create(None, name="Holiday"), turn(f"{file}Sum it\nup, please", "Done."), "m")
    store.add(store.create(None), turn(file.rstrip("\n"), "What about it?"), "m")
    assert [each.title for each in store.summaries()] == ["notes.txt", "Sum it up, please"]
    assert [each.name for each in store.summaries("holi")] == ["Holiday"]


def test_what_a_damaged_blob_holds_is_no_surprise(path: Path) -> None:
    store = Store(path)
    session = store.create(None)
    store.add(session, turn("q", "a", (1, 2, 3)), "m")
    for blob, ids in ((b"\1\0\0\0\2", (1,)), (b"", ()), ("text", None), (7, None)):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE turns SET tokens = ?", (blob,))
        assert store.conversation(session, "m").turns[0].answer.token_ids == ids
