"""Saving a conversation while it happens: at most a second of an answer is ever only in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import SavingError
from localgemma_cli.render.base import Answer
from localgemma_cli.sessions.store import Store

_WRITE_SECONDS = 0.5  # between two writes of an answer that streams

Value = TypeVar("Value")


class Recorder:
    """Of one chat; `store` None saves nothing. A failure is told once, and the chat goes on unsaved."""

    def __init__(
        self, store: Store | None, model: str, tell: Callable[[SavingError], None], session: int | None = None
    ) -> None:
        self.store, self.model, self.session = store, model, session
        self.name: str | None = None  # of a session that is still to be made
        self._tell = tell

    @contextmanager
    def question(self, text: str, system: str | None) -> Iterator["Recording"]:
        """Around one turn: the question is on disk before its answer; with no answer at all it goes again."""
        recording = Recording(self, self.attempt(lambda store: self._begin(store, text, system)))
        try:
            yield recording
        finally:
            recording.close()

    def turns_removed(self, turns: Sequence[Turn]) -> None:
        ids = [turn.saved for turn in turns if turn.saved is not None]
        self.attempt(lambda store: store.remove_turns(ids))

    def fork(self, conversation: Conversation) -> Conversation:
        """The same conversation as one of its own; the one so far stays as it is."""
        if (old := self.session) is None:
            return conversation
        session = self.attempt(lambda store: store.copy(old, conversation.turns, self.model))
        if session is None:
            return conversation
        self.session = session
        return self.attempt(lambda store: store.conversation(session, self.model)) or conversation

    def keep(self, conversation: Conversation, system: str | None) -> int:
        """The session that holds all of `conversation`; raises SavingError."""
        assert self.store is not None  # the caller has opened one
        if self.session is None:
            self.session = self.store.create(system)
        for turn in conversation.turns:
            if turn.saved is None:
                self.store.add(self.session, turn, self.model)
        return self.session

    def set_system(self, system: str | None) -> None:
        if (session := self.session) is not None:
            self.attempt(lambda store: store.set_system(session, system))

    def _begin(self, store: Store, question: str, system: str | None) -> int:
        if self.session is None:
            self.session = store.create(system, self.name)
            self.name = None
        return store.begin(self.session, question, self.model)

    def attempt(self, action: Callable[[Store], Value]) -> Value | None:
        """What `action` gives; None where nothing is saved, from the first failure on."""
        if self.store is None:
            return None
        try:
            return action(self.store)
        except SavingError as error:
            self.store = None
            self._tell(error)
            return None


class Recording:
    """One answer as a renderer sees it; a thread writes it, so that decoding never waits for a disk."""

    def __init__(self, recorder: Recorder, turn: int | None) -> None:
        self._recorder, self.turn = recorder, turn
        self._pieces: list[str] = []
        self._ended = Event()
        self._finished = False
        self._writer = Thread(target=self._write, name="save", daemon=True)
        if turn is not None:
            self._writer.start()

    def delta(self, text: str) -> None:
        self._pieces.append(text)

    def finish(self, answer: Answer) -> None:
        self._stop()
        self._finished = True
        message = Message("assistant", answer.text, answer.finished.token_ids)
        if (turn := self.turn) is not None:
            self._recorder.attempt(lambda store: store.finish(turn, message, answer.finished.finish_reason))

    def abort(self) -> None:
        """Another try may follow."""

    def close(self) -> None:
        self._stop()
        if self._finished or (turn := self.turn) is None:
            return
        text = "".join(self._pieces)
        if text:
            message = Message("assistant", text)
            self._recorder.attempt(lambda store: store.finish(turn, message, "interrupted"))
        else:
            self._recorder.attempt(lambda store: store.remove_turns([turn]))

    def _stop(self) -> None:
        self._ended.set()
        if self._writer.is_alive():
            self._writer.join()

    def _write(self) -> None:
        written = 0
        while not self._ended.wait(_WRITE_SECONDS):
            if (count := len(self._pieces)) > written and (turn := self.turn) is not None:
                text, written = "".join(self._pieces[:count]), count
                self._recorder.attempt(lambda store, text=text, turn=turn: store.stream(turn, text))  # type: ignore[misc]
