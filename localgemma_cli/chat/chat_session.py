"""An interactive chat without its terminal: the conversation, and what can be done with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from shutil import get_terminal_size
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.attachments import Attachment, find_mentions, prepend_attachments, read_attachment
from localgemma_cli.chat.phrases import format_count
from localgemma_cli.chat.prompt_text import PromptText, as_pasted
from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.chat.resume import drop_foreign_ids, format_question, select_last_turns
from localgemma_cli.chat.summary import summarize_turns
from localgemma_cli.chat.turn import TurnSettings, continue_turn, run_turn
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.render.base import Answer, Renderer, TeeRenderer
from localgemma_cli.sampling import Mode, Sampling, system_for
from localgemma_cli.sanitize import one_line

_CONTINUE = "Go on exactly where you stopped."


@dataclass
class Totals:
    """Totals of this chat; tokens as far as they were counted."""

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
    """The state of a chat; slash commands and the terminal's loop change it."""

    system: str | None
    mode: Mode
    settings: TurnSettings
    recorder: SessionRecorder
    make_renderer: Callable[[str], Renderer]  # of "markdown" or "plain"
    say: Callable[[str], None]
    render: str = "markdown"
    conversation: Conversation = field(default_factory=Conversation)
    attachments: list[Attachment] = field(default_factory=list)
    last: Answer | None = None
    totals: Totals = field(default_factory=Totals)
    rewind: int = 0  # turns that the next question replaces
    ids_checked: bool = False  # whether the saved token ids were compared with the model's
    earlier: tuple[Turn, ...] = ()  # still on the screen, but dropped from the conversation or summarized
    summaries: int = (
        0  # how many of the conversation's first turns are summaries, which are not on the screen
    )

    def __post_init__(self) -> None:
        self.conversation = replace(self.conversation, system=system_for(self.mode, self.system))

    def ask(
        self, backend: Backend, question: PromptText, cancel: Cancel, sampling: Sampling | None = None
    ) -> Answer:
        """Ask and append a turn; an error leaves everything unchanged, also the turns to be replaced."""
        self._check_ids(backend)
        text = self._with_files(question, backend)
        kept = self.conversation.without_last(self.rewind)
        settings = replace(self.settings, sampling=sampling or self.settings.sampling)
        with self.recorder.record_question(text, self.system) as recording:
            renderer = TeeRenderer(self.make_renderer(self.render), recording)
            conversation, answer = run_turn(backend, kept, text, settings, renderer, cancel)
        self._note_shortened(kept, conversation.without_last(1))
        self.recorder.remove_turns(self.conversation.turns[len(kept.turns) :])
        self.conversation = conversation.with_saved_ids([recording.turn])
        self.attachments, self.rewind = [], 0
        return self._count_answer(answer)

    def continue_answer(self, backend: Backend, cancel: Cancel) -> Answer:
        """Continue the last answer where it ended; a server that cannot is asked to in words."""
        self._check_ids(backend)
        turn = self._in_context(1)
        if turn.finish_reason == "stop":
            raise UsageError("The last answer is complete.", "Ask for more in your own words.")
        if not backend.continues:
            return self.ask(backend, as_pasted(_CONTINUE), cancel)
        with self.recorder.record_continuation(turn) as recording:
            renderer = TeeRenderer(self.make_renderer(self.render), recording)
            self.conversation, answer = continue_turn(
                backend, self.conversation, self.settings, renderer, cancel
            )
        return self._count_answer(answer)

    def undo(self, count: int) -> Sequence[Turn]:
        """Remove the last `count` turns on the screen and return them; UsageError if there are fewer.

        If that is more than the context holds, earlier turns that were dropped return to it.
        """
        self._last(count)
        removed = self._shown[-count:]
        more = count - len(self.conversation.turns) + self.summaries
        if more <= 0:
            self.conversation = self.conversation.without_last(count)
            self.recorder.remove_turns(removed)
        else:
            here, copied = self.conversation.turns, self.conversation.turns[: self.summaries]
            back = replace(self.conversation, turns=self.earlier[: len(self.earlier) - more])
            self.earlier, self.summaries = (), 0
            if any(
                turn.saved is not None for turn in copied
            ):  # /summarize continued in a copy, so this does too
                self.recorder.remove_turns(here[len(copied) :])
                back = self.recorder.fork(back)
            else:
                self.recorder.remove_turns(removed)
            self.conversation = back
        self.last = None
        return removed

    def start_replacing(self, count: int) -> str:
        """The question `count` turns back; the next question replaces it and all turns after it."""
        question = self._in_context(count).question.content
        self.rewind = count
        return question

    def answer(self, count: int) -> str:
        """The answer `count` turns back."""
        return self._last(count).answer.content

    def summarize(self, backend: Backend, cancel: Cancel) -> int:
        """Replace all but the last turn with a summary; returns how many. They stay saved."""
        if len(self.conversation.turns) < 2:
            raise UsageError("There is too little to summarize.", "/summarize needs at least two turns.")
        self._check_ids(backend)
        count = len(self.conversation.turns) - 1
        shorter = summarize_turns(backend, self.conversation, count, self.settings.sampling, cancel)
        self._note_shortened(self.conversation, shorter)
        self.conversation, self.last = self.recorder.fork(shorter), None
        return count

    def switch_conversation(self, conversation: Conversation, session: int | None) -> None:
        """Start or resume another conversation."""
        self.conversation = conversation
        self.recorder.switch_session(session)
        self.ids_checked = False
        self.last, self.rewind, self.attachments = None, 0, []
        self.earlier, self.summaries = (), 0

    def replay(self) -> None:
        """Show the last turns that fit one screen, and how many earlier ones there are."""
        columns, rows = get_terminal_size()
        shown = select_last_turns(self.conversation.turns, columns, rows)
        if earlier := len(self.conversation.turns) - len(shown):
            self.say(f"[{format_count(earlier, 'earlier turn')} not shown; /export FILE writes them all]\n")
        for turn in shown:
            self.say(f"> {format_question(turn, columns - 2, rows)}")
            self.show(turn.answer)
            self.say("[interrupted]\n" if turn.finish_reason == "interrupted" else "")

    def show(self, answer: Message) -> None:
        """Show a complete answer."""
        renderer = self.make_renderer(self.render)
        renderer.delta(answer.content)
        renderer.abort()

    def answered_by(self, model: str) -> None:
        """Another model answers from now on; token ids are valid only for the model that wrote them."""
        if model != self.recorder.model:
            self.recorder.model = model
            self.conversation, self.last = self.conversation.without_ids(), None

    def set_system(self, text: str | None) -> None:
        self.system = text
        self.conversation = replace(self.conversation, system=system_for(self.mode, text))
        self.recorder.set_system(text)

    def _check_ids(self, backend: Backend) -> None:
        """Before the first answer in a saved conversation: the model of that name may have changed."""
        if not self.ids_checked:
            self.conversation = drop_foreign_ids(self.conversation, backend, self.say)
            self.ids_checked = True

    @property
    def _shown(self) -> tuple[Turn, ...]:
        """The turns on the screen."""
        return (*self.earlier, *self.conversation.turns[self.summaries :])

    def _note_shortened(self, before: Conversation, after: Conversation) -> None:
        """Remember the oldest turns that were dropped or summarized."""
        same = 0
        for old, new in zip(reversed(before.turns), reversed(after.turns), strict=False):
            if old is not new:
                break
            same += 1
        gone = before.turns[: len(before.turns) - same]
        if gone:
            self.earlier += gone[self.summaries :]
            self.summaries = len(after.turns) - same

    def _in_context(self, count: int) -> Turn:
        """As `_last`, but raises UsageError if the turn is no longer in the context."""
        turn = self._last(count)
        if count > len(self.conversation.turns) - self.summaries:
            raise UsageError(
                "That turn is no longer in the context.", "Return to it with /undo, then ask again."
            )
        return turn

    def _last(self, count: int) -> Turn:
        """The turn `count` turns back."""
        turns = self._shown
        if not turns:
            raise UsageError("The conversation is empty.", "Ask something first.")
        if count > len(turns):
            number = format_count(len(turns), "turn")
            raise UsageError(f"The conversation has only {number} (got {count}).", "Type a smaller number.")
        return turns[-count]

    def _with_files(self, question: PromptText, backend: Backend) -> str:
        """The question after its attachments and the files it names."""
        names, missing = find_mentions(question.text, question.pasted)
        files = [*self.attachments]
        for name in names:
            try:
                files.append(read_attachment(name))
            except NotFoundError:  # it was removed, or can be opened but not read
                missing.append(name)
        for name in missing:
            self.say(f"[file not found: {one_line(name)}; sent as text]")
        for file in files:
            self.say(f"[with {one_line(file.name)}: {file.size(backend)}]")
        return prepend_attachments(question.text, files)

    def _count_answer(self, answer: Answer) -> Answer:
        self.last = answer
        self.totals.add(answer)
        return answer
