"""Saves a conversation while it happens: at most the last second of an answer is not on disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import TypeVar

from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import (
    EXIT_EXCEPTIONS,
    InterruptedAnswer,
    LocalGemmaError,
    SavingError,
    as_user_error,
)
from localgemma_cli.render.base import Answer
from localgemma_cli.sessions.opening import open_store
from localgemma_cli.sessions.store import Store

_WRITE_SECONDS = 0.5  # between two writes of a streaming answer
_LOOK_SECONDS = 0.05

Value = TypeVar("Value")


class SessionRecorder:
    """Saves one chat; `store` None saves nothing. The first failure is reported and ends the saving.

    `asked_only` (`--no-save`): only a conversation that the user saves with /save is saved, until /new.
    """

    def __init__(
        self,
        store: Store | None,
        model: str,
        report: Callable[[SavingError], None],
        session: int | None = None,
        *,
        asked_only: bool = False,
    ) -> None:
        self.store, self.model, self.session = store, model, session
        self._asked_only = asked_only
        self.name: str | None = None  # for a session that does not exist yet
        self.waiting: Callable[[], None] = lambda: None  # as `Store.waiting`
        self.failed = False
        self._created: tuple[int, str | None] | None = (
            None  # the session that this chat created, and its name
        )
        self._report = report
        self._late: list[Thread] = []

    @contextmanager
    def record_question(self, text: str, system: str | None) -> Iterator["AnswerRecorder"]:
        """Record one turn: the question is on disk before its answer, and removed again if the turn fails."""
        with self._recording(self.attempt(lambda store: self._begin(store, text, system))) as recording:
            try:
                yield recording
            except (
                *EXIT_EXCEPTIONS,
                OSError,
            ):  # the program ends, or its terminal is gone: keep what there is
                raise
            except BaseException:
                recording.discard()
                raise

    @contextmanager
    def record_continuation(self, turn: Turn) -> Iterator["AnswerRecorder"]:
        """Record the continuation of an answer; if it fails, the answer stays unchanged."""
        with self._recording(turn.saved, turn.answer) as recording:
            try:
                yield recording
            except (*EXIT_EXCEPTIONS, OSError):
                raise
            except BaseException:
                recording.restore(turn)
                raise

    @contextmanager
    def _recording(self, turn: int | None, begun: Message | None = None) -> Iterator["AnswerRecorder"]:
        recording = AnswerRecorder(self, turn, begun)
        try:
            yield recording
        finally:
            recording.close()

    def remove_turns(self, turns: Sequence[Turn]) -> None:
        ids = [turn.saved for turn in turns if turn.saved is not None]
        self.attempt_after(lambda store: store.remove_turns(ids))

    def fork(self, conversation: Conversation) -> Conversation:
        """Continue in a saved copy of the conversation; the original stays unchanged."""
        if (old := self.session) is None:
            return conversation
        copied = self.attempt(lambda store: store.copy(old, conversation.turns, self.model))
        if copied is None:
            return conversation
        self.session, places = copied
        return conversation.with_saved_ids(places)

    def save_all(
        self, conversation: Conversation, system: str | None, name: str | None
    ) -> tuple[int, Conversation]:
        """Save all of `conversation`, and from now on its next turns; returns the session's number.

        Raises SavingError; nothing more is saved then.
        """
        store = self.store or open_store()
        store.waiting = self.waiting
        try:
            with store.together():
                turns, session = conversation.turns, self.session
                unsaved = [turn.saved is None for turn in turns]
                if session is not None and unsaved != sorted(
                    unsaved
                ):  # an unsaved summary before saved turns
                    turns, session = tuple(replace(turn, saved=None) for turn in turns), None
                if session is None:
                    session = store.session(self.name, None)
                if name is not None:  # first: if the name is taken, nothing is written
                    store.rename(session, name=name)
                store.set_system(session, system)
                places = [store.put(session, turn, self.model) for turn in turns]
        except BaseException:
            if store is not self.store:
                store.close()
            raise
        self.store, self.session, self.name = store, session, None
        return session, conversation.with_saved_ids(places)

    def switch_session(self, session: int | None) -> None:
        """Record another conversation from now on, a new one for None."""
        self.session = session
        if self._asked_only and self.store is not None:
            self.wait()
            self.store.close()
            self.store = None

    def set_system(self, system: str | None) -> None:
        if (session := self.session) is not None:
            self.attempt_after(lambda store: store.set_system(session, system))

    def _begin(self, store: Store, question: str, system: str | None) -> int:
        if self.session is None:
            self.session = store.session(self.name, system)
            self._created, self.name = (self.session, self.name), None
        return store.begin(self.session, question, self.model)

    def remove_unused(self) -> None:
        """Remove the session that was created for a question if that question was discarded."""
        if self._created is None or self._created[0] != self.session:
            return
        created, name = self._created
        if self.attempt(lambda store: store.remove_unused(created, named=True)):
            self.session, self.name, self._created = None, name, None

    def finish_session(self) -> str | None:
        """At the end of a chat: the name or number of the saved session, None if it is empty."""
        if (session := self.session) is None or self.store is None:
            return None
        removed = self.attempt(lambda store: store.remove_unused(session, named=False))
        return None if removed else self.attempt(lambda store: store.handle(session))

    def attempt(self, action: Callable[[Store], Value]) -> Value | None:
        """The result of `action`; None if saving is off. The first failure turns it off."""
        if self.store is None:
            return None
        try:
            return action(self.store)
        except SavingError as error:
            failure = error
        except LocalGemmaError:  # a Ctrl-C
            raise
        except Exception as error:  # no failure to save may lose a complete answer
            failure = SavingError(as_user_error(error).message, "Retry with /save.")
        self.store, self.failed = None, True
        self._report(failure)
        return None

    def attempt_after(self, action: Callable[[Store], None], after: Thread | None = None) -> None:
        """`attempt` once the thread `after` has ended; a Ctrl-C ends the waiting, not the saving."""

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
        """Wait until everything is saved."""
        for thread in self._late:
            thread.join()


class AnswerRecorder:
    """A renderer that saves one answer; a thread writes it, so that decoding does not wait for the disk.

    `begun` is the existing part of an answer that is continued; `turn` None records nothing.
    """

    def __init__(self, recorder: SessionRecorder, turn: int | None, begun: Message | None) -> None:
        self._recorder, self.turn = recorder, turn
        self._begun = begun or Message("assistant", "", ())
        self._pieces = [self._begun.content]
        self._ended = Event()
        self._has_ended = turn is None
        self._writer = Thread(target=self._write, name="save", daemon=True)
        if turn is not None and recorder.store is not None:
            self._writer.start()

    def thinking(self, text: str) -> None:
        """Thinking is not saved."""

    def delta(self, text: str) -> None:
        self._pieces.append(text)

    def finish(self, answer: Answer) -> None:
        more = Message("assistant", answer.text, answer.finished.token_ids)
        self._end_with(
            lambda store, turn: store.finish(turn, self._begun + more, answer.finished.finish_reason)
        )

    def abort(self) -> None:
        """Nothing yet: a retry may follow."""

    def discard(self) -> None:
        self._end_with(lambda store, turn: store.remove_turns([turn]))
        self._recorder.remove_unused()

    def restore(self, before: Turn) -> None:
        self._end_with(lambda store, turn: store.finish(turn, before.answer, before.finish_reason))

    def close(self) -> None:
        """Keep a partial answer if the program ends before any other method ended it."""
        text = "".join(self._pieces)
        self._ended.set()
        if not text:
            self.discard()
        elif len(self._pieces) > 1:
            message = Message("assistant", text)
            self._end_with(lambda store, turn: store.finish(turn, message, "interrupted"))

    def _end_with(self, action: Callable[[Store, int], None]) -> None:
        """End the recording; later ends have no effect."""
        self._ended.set()
        if not self._has_ended and (turn := self.turn) is not None:
            self._has_ended = True
            after = self._writer if self._writer.is_alive() else None
            self._recorder.attempt_after(lambda store: action(store, turn), after)

    def _write(self) -> None:
        """Write the answer so far, again and again. A failure is reported at the end, by the main thread."""
        store, turn, written = self._recorder.store, self.turn, 1
        assert store is not None  # the thread starts only
        assert turn is not None  # if both exist
        while not self._ended.wait(_WRITE_SECONDS):
            if (count := len(self._pieces)) > written:
                written = count
                try:
                    store.stream(turn, "".join(self._pieces[:count]))
                except Exception:  # it is raised again at the end
                    return
