"""A chat without a terminal: the real session with the bundled model, its words collected."""

from dataclasses import dataclass, field
from functools import cache
from threading import Event as Cancel

from support.models import DEMO

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.prompt_text import PromptText
from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.chat.slash.actions import perform
from localgemma_cli.chat.slash.outcome import CommandContext, Outcome
from localgemma_cli.chat.turn import TurnSettings
from localgemma_cli.conversation import Turn
from localgemma_cli.errors import SavingError
from localgemma_cli.render.base import Answer
from localgemma_cli.sampling import Mode, OnOverflow, Sampling
from localgemma_cli.sessions.store import Store

GREEDY = Sampling(temperature=0, max_new_tokens=80)


@cache
def demo_backend() -> Backend:
    from localgemma_cli.backends.pytorch.backend import load_backend
    from localgemma_cli.models.resolve import resolve
    from localgemma_cli.planning.hardware import probe
    from localgemma_cli.planning.plan import Overrides, make_plan
    from localgemma_cli.planning.presets import load_presets
    from localgemma_cli.render.progress import ignore_progress

    facts = resolve("demo", revision=None, offline=True).facts
    plan = make_plan(facts, "exact", probe("cpu"), Overrides(device="cpu"), load_presets())
    return load_backend(plan, DEMO, ignore_progress)


@dataclass
class Watcher:
    """A renderer that stops its answer after so many pieces of text."""

    cancel: Cancel
    stop_after: int | None = None
    pieces: list[str] = field(default_factory=list)

    def thinking(self, text: str) -> None: ...

    def delta(self, text: str) -> None:
        self.pieces.append(text)
        if len(self.pieces) == self.stop_after:
            self.cancel.set()

    def finish(self, answer: Answer) -> None: ...

    def abort(self) -> None: ...


class Chat:
    """`said` is what the program told, `trimmed` which turns had to go and how."""

    def __init__(
        self, store: Store | None = None, *, system: str | None = None, mode: Mode = Mode.CHAT
    ) -> None:
        self.said: list[str] = []
        self.trimmed: list[tuple[list[str], str]] = []
        self.failures: list[SavingError] = []
        self.backend = demo_backend()
        self.watcher = Watcher(Cancel())
        self.session = ChatSession(
            system=system,
            mode=mode,
            settings=TurnSettings(GREEDY, OnOverflow.TRIM, self._trimmed),
            recorder=SessionRecorder(store, "demo", self.failures.append),
            make_renderer=lambda kind: self.watcher,
            say=self.said.append,
        )

    def ask(
        self, question: str | PromptText, sampling: Sampling | None = None, *, stop_after: int | None = None
    ) -> Answer:
        """A text is typed, a line what it says of itself."""
        self.watcher = Watcher(Cancel(), stop_after)
        line = PromptText(question) if isinstance(question, str) else question
        return self.session.ask(self.backend, line, self.watcher.cancel, sampling)

    def go_on(self, *, stop_after: int | None = None) -> Answer:
        self.watcher = Watcher(Cancel(), stop_after)
        return self.session.continue_answer(self.backend, self.watcher.cancel)

    def do(self, line: str) -> Outcome:
        name, _, argument = line.partition(" ")
        facts = CommandContext(lambda: "the plan", lambda: "demo", lambda: self.backend, lambda: self.backend)
        return perform(self.session, facts, name, argument)

    def read(self) -> int:
        """Tokens of the last prompt that were not in the cache."""
        assert self.session.last is not None
        usage = self.session.last.finished.usage
        assert usage.prompt_tokens is not None
        assert usage.cached_prompt_tokens is not None
        return usage.prompt_tokens - usage.cached_prompt_tokens

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.session.conversation.turns

    def _trimmed(self, turns: object, how: str) -> None:
        assert isinstance(turns, tuple)
        self.trimmed.append(([turn.question.content for turn in turns], how))
