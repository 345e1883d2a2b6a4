"""An interactive chat without its terminal: what was said, how answers are made, and where they are saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.attach import Attachment, mentioned, read_attachment, with_attachments
from localgemma_cli.chat.recording import Recorder
from localgemma_cli.chat.summary import summarized
from localgemma_cli.chat.turn import Settings, continue_turn, run_turn
from localgemma_cli.conversation import Conversation, Turn
from localgemma_cli.errors import UsageError
from localgemma_cli.render.base import Answer, Both, Renderer
from localgemma_cli.render.sanitize import visible
from localgemma_cli.sampling import Mode, Sampling, system_for

_GO_ON = "Go on exactly where you stopped."


@dataclass
class Totals:
    """Of this chat; tokens as far as they were counted."""

    answers: int = 0
    prefilled: int = 0
    cached: int = 0
    generated: int = 0

    def add(self, answer: Answer) -> None:
        usage = answer.finished.usage
        self.answers += 1
        self.prefilled += (usage.prompt_tokens or 0) - (usage.cached_prompt_tokens or 0)
        self.cached += usage.cached_prompt_tokens or 0
        self.generated += usage.completion_tokens or 0


@dataclass
class ChatSession:
    """The one thing of a chat that changes; commands and the terminal's loop work on it."""

    system: str | None
    mode: Mode
    settings: Settings
    recorder: Recorder
    make_renderer: Callable[[str], Renderer]  # of "markdown" or "plain"
    say: Callable[[str], None]
    render: str = "markdown"
    conversation: Conversation = field(default_factory=Conversation)
    attachments: list[Attachment] = field(default_factory=list)
    last: Answer | None = None
    totals: Totals = field(default_factory=Totals)
    rewind: int = 0  # turns that the next question replaces

    def __post_init__(self) -> None:
        self.conversation = replace(self.conversation, system=system_for(self.mode, self.system))

    def ask(
        self, backend: Backend, question: str, cancel: Cancel, sampling: Sampling | None = None
    ) -> Answer:
        """One turn more; an error leaves everything as it was, what was to be replaced included."""
        text = self._with_files(question)
        kept = replace(
            self.conversation, turns=self.conversation.turns[: len(self.conversation.turns) - self.rewind]
        )
        settings = replace(self.settings, sampling=sampling or self.settings.sampling)
        with self.recorder.question(text, self.system) as recording:
            renderer = Both(self.make_renderer(self.render), recording)
            conversation, answer = run_turn(backend, kept, text, settings, renderer, cancel)
        self.recorder.turns_removed(self.conversation.turns[len(kept.turns) :])
        self.conversation = conversation.with_saved(recording.turn)
        self.attachments, self.rewind = [], 0
        return self._noted(answer)

    def go_on(self, backend: Backend, cancel: Cancel) -> Answer:
        """The last answer, continued from its last token; a server is asked to in words."""
        if not self.conversation.turns:
            raise UsageError("There is no answer to continue.", "Ask something first.")
        if not backend.continues:
            return self.ask(backend, _GO_ON, cancel)
        renderer = self.make_renderer(self.render)
        self.conversation, answer = continue_turn(backend, self.conversation, self.settings, renderer, cancel)
        turn = self.conversation.turns[-1]
        if turn.saved is not None:
            saved = turn.saved
            self.recorder.attempt(lambda store: store.finish(saved, turn.answer, turn.finish_reason))
        return self._noted(answer)

    def undo(self, count: int) -> Sequence[Turn]:
        """The turns that are gone; UsageError where there are not as many."""
        removed = self.conversation.turns[len(self._before(count).turns) :]
        self.conversation = self._before(count)
        self.recorder.turns_removed(removed)
        self.last = None
        return removed

    def replaces(self, count: int) -> str:
        """The question `count` turns back; the next one takes its place and that of all after it."""
        self._before(count)
        self.rewind = count
        return self.conversation.turns[-count].question.content

    def summarize(self, backend: Backend, cancel: Cancel) -> int:
        """Put a summary in the place of all but the last turn; how many went. The file keeps them all."""
        if len(self.conversation.turns) < 2:
            raise UsageError("There is too little to summarize.", "It needs two turns or more.")
        count = len(self.conversation.turns) - 1
        shorter = summarized(backend, self.conversation, count, self.settings.sampling, cancel)
        if not cancel.is_set():
            self.conversation = self.recorder.fork(shorter)
        return count

    def fresh(self, conversation: Conversation, session: int | None) -> None:
        """Go on with another conversation."""
        self.conversation, self.recorder.session = conversation, session
        self.last, self.rewind, self.attachments = None, 0, []

    def replay(self) -> None:
        """Show what was said before."""
        for turn in self.conversation.turns:
            self.say(f"> {visible(turn.question.content)}")
            renderer = self.make_renderer(self.render)
            renderer.delta(turn.answer.content)
            renderer.abort()
            self.say("[interrupted]\n" if turn.finish_reason == "interrupted" else "")

    def set_system(self, text: str | None) -> None:
        self.system = text
        self.conversation = replace(self.conversation, system=system_for(self.mode, text))
        self.recorder.set_system(text)

    def _before(self, count: int) -> Conversation:
        turns = self.conversation.turns
        if not 1 <= count <= len(turns):
            said = "nothing has been said yet" if not turns else f"there are {len(turns)} turns"
            raise UsageError(f"{count} turns cannot be taken back: {said}.", "Give a smaller number.")
        return replace(self.conversation, turns=turns[: len(turns) - count])

    def _with_files(self, question: str) -> str:
        names, missing = mentioned(question)
        for name in missing:
            self.say(f"[there is no file {name}: @{name} is sent as text]")
        return with_attachments(question, [*self.attachments, *map(read_attachment, names)])

    def _noted(self, answer: Answer) -> Answer:
        self.last = answer
        self.totals.add(answer)
        return answer
