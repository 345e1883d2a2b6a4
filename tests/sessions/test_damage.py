"""A file of conversations that is damaged, raced for, cut short or has no room: nothing said is lost."""

import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import SavingError
from localgemma_cli.sessions.export_file import write_new_file
from localgemma_cli.sessions.store import Store

FORK = multiprocessing.get_context("fork")
ROUNDS = int(os.environ.get("LOCALGEMMA_DAMAGE_ROUNDS", "5"))  # of processes that meet one damaged file
KILLS = int(os.environ.get("LOCALGEMMA_IMPORT_KILLS", "4"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.sqlite"


def turn(question: str, answer: str = "a") -> Turn:
    return Turn(Message("user", question), Message("assistant", answer), "stop")


def questions(path: Path) -> list[str]:
    store = Store(path)
    return [
        each.question.content
        for session in store.summaries()
        for each in store.conversation(session.id, "m").turns
    ]


def as_another_process(action: Callable[[], object]) -> "multiprocessing.process.BaseProcess":
    process = FORK.Process(target=action)
    process.start()
    return process


def test_of_several_that_meet_a_damaged_file_one_sets_it_aside(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        path = tmp_path / str(number) / "conversations.sqlite"
        path.parent.mkdir()
        path.write_bytes(f"PRECIOUS {number} ".encode() * 500)
        barrier = FORK.Barrier(4)

        def say(who: int, path: Path = path, barrier: object = barrier) -> None:
            barrier.wait()  # type: ignore[attr-defined]
            store = Store(path)
            store.add(store.create(None), turn(f"from {who}"), "m")

        processes = [as_another_process(lambda who=who: say(who)) for who in range(4)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        (aside,) = path.parent.glob("*-damaged-*.sqlite")
        assert aside.read_bytes() == f"PRECIOUS {number} ".encode() * 500
        assert sorted(questions(path)) == [f"from {who}" for who in range(4)]


def test_what_is_set_aside_within_a_second_replaces_nothing(path: Path) -> None:
    for content in (b"first" * 200, b"second" * 200, b"third" * 200):
        path.write_bytes(content)
        Store(path).close()
    kept = {each.read_bytes() for each in path.parent.glob("*-damaged-*.sqlite")}
    assert kept == {b"first" * 200, b"second" * 200, b"third" * 200}


def saved(path: Path) -> bytes:
    store = Store(path)
    for number in range(8):
        session = store.create(None, name=f"name{number}")
        store.add(session, turn(f"question {number} " * 20, "an answer with é " * 60), "m")
    store.close()
    return path.read_bytes()


def test_one_bad_byte_anywhere_stops_no_chat(path: Path) -> None:
    content = saved(path)
    schema = content.find(b"CREATE TABLE sessions")
    rng = random.Random(0)
    places = [
        *(
            18,
            19,
            24,
            28,
            44,
            56,
            60,
            63,
            96,
            100,
            101,
            103,
            105,
        ),  # the head of the file and of its first page
        *(
            content.find(word)
            for word in (b"CREATE TABLE turns", b"turns_of_session", b"UNIQUE", b"fts5", b"finish TEXT")
        ),
        *(rng.randrange(schema - 2000, schema + 300) for _ in range(10)),
        *(content.find("é".encode()) + 1, content.find(b"question 3")),
        *(rng.randrange(4096, len(content)) for _ in range(20)),
    ]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0xC1
        for each in path.parent.iterdir():
            each.unlink()
        path.write_bytes(damaged)
        store = Store(path)
        store.summaries("answer")
        for session in store.summaries():
            store.conversation(session.id, "m")
        session = store.create(None)
        store.add(session, turn("after the damage"), "m")
        assert store.latest() == session, place
        store.close()
        if store.notice:
            (aside,) = path.parent.glob("*-damaged-*.sqlite")
            assert aside.read_bytes() == damaged, place


def test_a_damaged_index_is_made_anew_and_loses_nothing(path: Path) -> None:
    saved(path)
    damages = [
        "UPDATE words_data SET block = zeroblob(length(block)) WHERE id > 10",  # the words themselves
        "UPDATE words_data SET block = x'' WHERE id = 1",  # how many there are
    ]
    content = path.read_bytes()
    for damage in damages:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(damage)
            connection.commit()
        store = Store(path)
        assert store.notice is None, damage
        assert len(store.search("answer")) == 8, damage
        for session in store.summaries()[:4]:
            store.remove(session.id)
        store.add(store.create(None), turn("after the damage"), "m")
        assert len(store.search("answer")) == 4, damage
        assert store.search("damage"), damage
        store.close()
        path.write_bytes(content)


def test_a_turn_that_an_index_left_out_is_found_again(path: Path) -> None:
    content = saved(path)
    with closing(sqlite3.connect(path)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'turns_of_session'")
        start = (page.fetchone()[0] - 1) * 4096
    damaged = bytearray(content)
    damaged[start + 4095] ^= 2  # the number of the first turn: entries fill a page from its end
    path.write_bytes(damaged)
    store = Store(path)
    assert store.notice is None
    assert [each.turns for each in store.summaries()] == [1] * 8
    for session in store.summaries():
        assert store.conversation(session.id, "m").turns
        store.remove(session.id)


@pytest.mark.parametrize("device", ["fifo", "/dev/zero"])
def test_what_is_no_file_is_not_read_without_end(path: Path, device: str) -> None:
    os.mkfifo(path) if device == "fifo" else path.symlink_to(device)
    with pytest.raises(SavingError, match="it is not a regular file"):
        Store(path)


def test_with_the_clock_set_back_the_latest_is_still_the_latest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(path)
    store.add(store.create(None), turn("today"), "m")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    second = store.create(None)
    store.add(second, turn("after the clock was set back"), "m")
    assert store.latest() == second
    assert store.summaries()[0].id == second


def test_an_import_that_is_killed_leaves_all_or_nothing(tmp_path: Path) -> None:
    conversation = Conversation(None, tuple(turn(f"q{number}") for number in range(1500)))
    started = time.monotonic()
    Store(tmp_path / "measured.sqlite").import_conversation(conversation)
    took = time.monotonic() - started
    rng = random.Random(0)
    for number in range(KILLS):
        path = tmp_path / f"{number}.sqlite"
        Store(path).close()
        process = as_another_process(lambda path=path: Store(path).import_conversation(conversation))
        time.sleep(rng.random() * took)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert [each.turns for each in Store(path).summaries()] in ([], [1500])


def test_an_import_with_a_name_that_is_taken_leaves_nothing(path: Path) -> None:
    store = Store(path)
    store.create(None, name="trip")
    with pytest.raises(SavingError, match="has that name"):
        store.import_conversation(Conversation(None, (turn("q"),)), "trip")
    assert [(each.name, each.turns) for each in store.summaries()] == [("trip", 0)]


def test_an_export_without_room_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "long.md"

    def export() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(SavingError, match="Cannot write"):
            write_new_file(path, "x" * 100_000)

    process = as_another_process(export)
    process.join()
    assert process.exitcode == 0
    assert list(tmp_path.iterdir()) == []
    write_new_file(path, "whole")
    assert path.read_text() == "whole"
    assert path.stat().st_mode & 0o777 == 0o600
