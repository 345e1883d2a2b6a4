"""Saving a conversation while it happens: at most a second of an answer is ever only in memory."""

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

_WRITE_SECONDS = 0.5  # between two writes of an answer that streams
_LOOK_SECONDS = 0.05

Value = TypeVar("Value")


class SessionRecorder:
    """Of one chat; `store` None saves nothing. A failure is told once, and the chat goes on unsaved.

    `asked_only`: nothing is saved but a conversation that the user saves, and that one alone (`--no-save`).
    """

    def __init__(
        self,
        store: Store | None,
        model: str,
        tell: Callable[[SavingError], None],
        session: int | None = None,
        *,
        asked_only: bool = False,
    ) -> None:
        self.store, self.model, self.session = store, model, session
        self._asked_only = asked_only
        self.name: str | None = None  # of a session that is still to be made
        self.waiting: Callable[[], None] = lambda: None  # as a store's
        self.failed = False
        self._made: tuple[int, str | None] | None = None  # the session that this chat began, and its name
        self._tell = tell
        self._late: list[Thread] = []

    @contextmanager
    def question(self, text: str, system: str | None) -> Iterator["AnswerRecorder"]:
        """Around one turn: the question is on disk before its answer; where it fails, it goes again."""
        with self._recording(self.attempt(lambda store: self._begin(store, text, system))) as recording:
            try:
                yield recording
            except (
                *EXIT_EXCEPTIONS,
                OSError,
            ):  # the program is ending, or its terminal is gone: what came is kept
                raise
            except BaseException:
                recording.forget()
                raise

    @contextmanager
    def continuation(self, turn: Turn) -> Iterator["AnswerRecorder"]:
        """Around what is added to an answer; where it fails, the answer stays as it was."""
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
        return conversation.with_saved_ids(places)

    def keep(
        self, conversation: Conversation, system: str | None, name: str | None
    ) -> tuple[int, Conversation]:
        """The session that holds all of `conversation` from now on, under `name`.

        Raises SavingError, and then nothing of it is saved that was not saved before.
        """
        store = self.store or open_store()
        store.waiting = self.waiting
        try:
            with store.together():
                turns, session = conversation.turns, self.session
                unsaved = [turn.saved is None for turn in turns]
                if session is not None and unsaved != sorted(unsaved):  # a summary, before what is saved
                    turns, session = tuple(replace(turn, saved=None) for turn in turns), None
                if session is None:
                    session = store.session(self.name, None)
                if name is not None:  # first: where it is taken, no byte of what was said gets on disk
                    store.rename(session, name=name)
                store.set_system(session, system)
                places = [store.put(session, turn, self.model) for turn in turns]
        except BaseException:
            if store is not self.store:
                store.close()
            raise
        self.store, self.session, self.name = store, session, None
        return session, conversation.with_saved_ids(places)

    def go_on_with(self, session: int | None) -> None:
        """Another conversation, a new one for None; that the one before was saved says nothing of this."""
        self.session = session
        if self._asked_only and self.store is not None:
            self.wait()
            self.store.close()
            self.store = None

    def set_system(self, system: str | None) -> None:
        if (session := self.session) is not None:
            self.settle(lambda store: store.set_system(session, system))

    def _begin(self, store: Store, question: str, system: str | None) -> int:
        if self.session is None:
            self.session = store.session(self.name, system)
            self._made, self.name = (self.session, self.name), None
        return store.begin(self.session, question, self.model)

    def drop_unused(self) -> None:
        """A session that was made for a question of which nothing is kept goes with it."""
        if self._made is None or self._made[0] != self.session:
            return
        made, name = self._made
        if self.attempt(lambda store: store.remove_unused(made, named=True)):
            self.session, self.name, self._made = None, name, None

    def leave(self) -> str | None:
        """What the session is found by that stays at the end of a chat: not one that nothing was said in."""
        if (session := self.session) is None or self.store is None:
            return None
        gone = self.attempt(lambda store: store.remove_unused(session, named=False))
        return None if gone else self.attempt(lambda store: store.handle(session))

    def attempt(self, action: Callable[[Store], Value]) -> Value | None:
        """What `action` gives; None where nothing is saved, from the first failure on."""
        if self.store is None:
            return None
        try:
            return action(self.store)
        except SavingError as error:
            failure = error
        except LocalGemmaError:  # a Ctrl-C
            raise
        except Exception as error:  # an answer that is whole is not lost for what saving it meets
            failure = SavingError(as_user_error(error).message, "/save tries again.")
        self.store, self.failed = None, True
        self._tell(failure)
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


class AnswerRecorder:
    """One answer as a renderer sees it; a thread writes it, so that decoding never waits for a disk.

    `begun` is what it had before, where it is gone on with; `turn` None records nothing.
    """

    def __init__(self, recorder: SessionRecorder, turn: int | None, begun: Message | None) -> None:
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
        self._recorder.drop_unused()

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
                except Exception:  # whatever it is, it comes again at the end
                    return
