"""Saving a conversation while it happens: at most a second of an answer is ever only in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import InterruptedAnswer, LocalGemmaError, SavingError
from localgemma_cli.render.base import Answer
from localgemma_cli.sessions.store import Store

_WRITE_SECONDS = 0.5  # between two writes of an answer that streams
_LOOK_SECONDS = 0.05

Value = TypeVar("Value")


class Recorder:
    """Of one chat; `store` None saves nothing. A failure is told once, and the chat goes on unsaved."""

    def __init__(
        self, store: Store | None, model: str, tell: Callable[[SavingError], None], session: int | None = None
    ) -> None:
        self.store, self.model, self.session = store, model, session
        self.name: str | None = None  # of a session that is still to be made
        self._tell = tell
        self._late: list[Thread] = []

    @contextmanager
    def question(self, text: str, system: str | None) -> Iterator["Recording"]:
        """Around one turn: the question is on disk before its answer; where it fails, it goes again."""
        with self._recording(self.attempt(lambda store: self._begin(store, text, system))) as recording:
            try:
                yield recording
            except LocalGemmaError:
                recording.forget()
                raise

    @contextmanager
    def continuation(self, turn: Turn) -> Iterator["Recording"]:
        """Around what is added to an answer; where it fails, the answer stays as it was."""
        with self._recording(turn.saved, turn.answer) as recording:
            try:
                yield recording
            except LocalGemmaError:
                recording.restore(turn)
                raise

    @contextmanager
    def _recording(self, turn: int | None, begun: Message | None = None) -> Iterator["Recording"]:
        recording = Recording(self, turn, begun)
        try:
            yield recording
        finally:
            recording.close()

    def turns_removed(self, turns: Sequence[Turn]) -> None:
        ids = [turn.saved for turn in turns if turn.saved is not None]
        self.settle(lambda store: store.remove_turns(ids))

    def fork(self, conversation: Conversation) -> Conversation:
        """The same conversation as one of its own; the one so far stays as it is."""
        if (old := self.session) is None:
            return conversation
        copied = self.attempt(lambda store: store.copy(old, conversation.turns, self.model))
        if copied is None:
            return conversation
        self.session, places = copied
        return conversation.with_places(places)

    def keep(self, conversation: Conversation, system: str | None) -> tuple[int, Conversation]:
        """The session that holds all of `conversation` from now on; raises SavingError."""
        assert self.store is not None  # the caller has opened one
        if self.session is None:
            self.session = self.store.session(self.name, system)
        places = [self.store.put(self.session, turn, self.model) for turn in conversation.turns]
        self.store.set_system(self.session, system)
        return self.session, conversation.with_places(places)

    def set_system(self, system: str | None) -> None:
        if (session := self.session) is not None:
            self.settle(lambda store: store.set_system(session, system))

    def _begin(self, store: Store, question: str, system: str | None) -> int:
        if self.session is None:
            self.session = store.session(self.name, system)
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

    def settle(self, action: Callable[[Store], None], after: Thread | None = None) -> None:
        """`attempt`, once the thread `after` has ended; a Ctrl-C ends the waiting for it, not the saving."""

        def saving() -> None:
            if after is not None:
                after.join()
            self.attempt(action)

        try:
            while after is not None and after.is_alive():
                after.join(_LOOK_SECONDS)
                if self.store is not None:
                    self.store.waiting()
            self.attempt(action)
        except InterruptedAnswer:
            self._late.append(Thread(target=saving, name="save", daemon=True))
            self._late[-1].start()

    def wait(self) -> None:
        """Until all is saved that was to be."""
        for thread in self._late:
            thread.join()


class Recording:
    """One answer as a renderer sees it; a thread writes it, so that decoding never waits for a disk.

    `begun` is what it had before, where it is gone on with; `turn` None records nothing.
    """

    def __init__(self, recorder: Recorder, turn: int | None, begun: Message | None) -> None:
        self._recorder, self.turn = recorder, turn
        self._begun = begun or Message("assistant", "", ())
        self._pieces = [self._begun.content]
        self._ended = Event()
        self._settled = turn is None
        self._writer = Thread(target=self._write, name="save", daemon=True)
        if turn is not None and recorder.store is not None:
            self._writer.start()

    def thinking(self, text: str) -> None:
        """Of the moment: neither saved nor told in later turns."""

    def delta(self, text: str) -> None:
        self._pieces.append(text)

    def finish(self, answer: Answer) -> None:
        more = Message("assistant", answer.text, answer.finished.token_ids)
        self._settle(
            lambda store, turn: store.finish(turn, self._begun + more, answer.finished.finish_reason)
        )

    def abort(self) -> None:
        """Another try may follow."""

    def forget(self) -> None:
        self._settle(lambda store, turn: store.remove_turns([turn]))

    def restore(self, before: Turn) -> None:
        self._settle(lambda store, turn: store.finish(turn, before.answer, before.finish_reason))

    def close(self) -> None:
        """Where nothing else was told of its end, the program is ending: what came is kept."""
        text = "".join(self._pieces)
        self._ended.set()
        if not text:
            self.forget()
        elif len(self._pieces) > 1:
            message = Message("assistant", text)
            self._settle(lambda store, turn: store.finish(turn, message, "interrupted"))

    def _settle(self, action: Callable[[Store, int], None]) -> None:
        """Only the first end counts."""
        self._ended.set()
        if not self._settled and (turn := self.turn) is not None:
            self._settled = True
            after = self._writer if self._writer.is_alive() else None
            self._recorder.settle(lambda store: action(store, turn), after)

    def _write(self) -> None:
        """A failure is told at the end, by the thread that writes on the terminal."""
        store, turn, written = self._recorder.store, self.turn, 1
        assert store is not None  # the thread is started only
        assert turn is not None  # where there are both
        while not self._ended.wait(_WRITE_SECONDS):
            if (count := len(self._pieces)) > written:
                written = count
                try:
                    store.stream(turn, "".join(self._pieces[:count]))
                except SavingError:
                    return
