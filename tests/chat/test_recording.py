"""What is saved while another program holds the file of conversations, and when the terminal goes."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest

from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.conversation import Message
from localgemma_cli.errors import InterruptedAnswer, SavingError
from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer, TeeRenderer
from localgemma_cli.render.plain import PlainRenderer
from localgemma_cli.sessions.store import Store

ANSWER = Answer("Fine.", Finished("stop", Usage(1, 0, 1), Timing(0.1, None, 0.1), (7, 8)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.sqlite"


def locked(path: Path) -> "closing[sqlite3.Connection]":
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


def test_a_ctrl_c_ends_the_waiting_and_a_whole_answer_is_saved_later(path: Path) -> None:
    interrupted = Event()
    failures: list[SavingError] = []
    store = Store(path)
    recorder = SessionRecorder(store, "demo", failures.append)

    def look() -> None:
        if interrupted.is_set() and current_thread() is main_thread():
            raise InterruptedAnswer("Stopped.", "Again.")

    store.waiting = recorder.waiting = look
    with recorder.record_question("How are you?", None) as recording:
        recording.delta("Fine.")
        with locked(path):
            interrupted.set()
            recording.finish(ANSWER)  # comes back at once, as if it was saved
            assert recorder.session is not None
            assert Store(path).conversation(recorder.session, "demo").turns[0].finish_reason == "interrupted"
    recorder.wait()
    saved = Store(path).conversation(recorder.session, "demo").turns
    assert [(turn.answer, turn.finish_reason) for turn in saved] == [
        (Message("assistant", "Fine.", (7, 8)), "stop")
    ]
    assert not failures


def test_a_ctrl_c_before_the_question_is_saved_leaves_nothing_of_it(path: Path) -> None:
    store = Store(path)
    recorder = SessionRecorder(store, "demo", lambda _: None)

    def look() -> None:
        raise InterruptedAnswer("Stopped.", "Again.")

    store.waiting = recorder.waiting = look
    with locked(path), pytest.raises(InterruptedAnswer), recorder.record_question("How are you?", None):
        raise AssertionError("the question was asked unsaved")
    assert recorder.store is store  # and the next is saved again
    assert not Store(path).summaries()


def test_the_last_word_that_a_closed_terminal_showed_is_saved(path: Path) -> None:
    ours, theirs = os.openpty()
    terminal = open(theirs, "w", encoding="utf-8")  # noqa: SIM115  # its end fails as well
    os.close(ours)
    recorder = SessionRecorder(Store(path), "demo", lambda _: None)
    with pytest.raises(OSError, match="Input"), recorder.record_question("How are you?", None) as recording:
        TeeRenderer(PlainRenderer(terminal), recording).delta("Fine.")
    with suppress(OSError):
        terminal.close()
    assert recorder.session is not None
    (turn,) = Store(path).conversation(recorder.session, "demo").turns
    assert (turn.answer.content, turn.finish_reason) == ("Fine.", "interrupted")
