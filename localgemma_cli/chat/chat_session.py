"""An interactive chat without its terminal: what was said, how answers are made, and where they are saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from shutil import get_terminal_size
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.attachments import Attachment, find_mentions, prepend_attachments, read_attachment
from localgemma_cli.chat.prompt_text import PromptText, as_pasted
from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.chat.resume import drop_foreign_ids, format_question, select_last_turns
from localgemma_cli.chat.slash.outcome import counted
from localgemma_cli.chat.summary import summarize_turns
from localgemma_cli.chat.turn import TurnSettings, continue_turn, run_turn
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.render.base import Answer, Renderer, TeeRenderer
from localgemma_cli.sampling import Mode, Sampling, system_for
from localgemma_cli.sanitize import one_line

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
    checked: bool = False  # whether the token ids are known to be the model's
    earlier: tuple[Turn, ...] = ()  # on the screen, and no more in the conversation: left out, or summed up
    summaries: int = 0  # of the conversation's first turns, which are not on the screen

    def __post_init__(self) -> None:
        self.conversation = replace(self.conversation, system=system_for(self.mode, self.system))

    def ask(
        self, backend: Backend, question: PromptText, cancel: Cancel, sampling: Sampling | None = None
    ) -> Answer:
        """One turn more; an error leaves everything as it was, what was to be replaced included."""
        self._own_ids(backend)
        text = self._with_files(question, backend)
        kept = self.conversation.without_last(self.rewind)
        settings = replace(self.settings, sampling=sampling or self.settings.sampling)
        with self.recorder.question(text, self.system) as recording:
            renderer = TeeRenderer(self.make_renderer(self.render), recording)
            conversation, answer = run_turn(backend, kept, text, settings, renderer, cancel)
        self._note_shortened(kept, conversation.without_last(1))
        self.recorder.turns_removed(self.conversation.turns[len(kept.turns) :])
        self.conversation = conversation.with_saved_ids([recording.turn])
        self.attachments, self.rewind = [], 0
        return self._noted(answer)

    def go_on(self, backend: Backend, cancel: Cancel) -> Answer:
        """The last answer, continued from where it ended; a server that cannot is asked to in words."""
        self._own_ids(backend)
        turn = self._in_context(1)
        if turn.finish_reason == "stop":
            raise UsageError("The last answer came to its end.", "Ask for more in your own words.")
        if not backend.continues:
            return self.ask(backend, as_pasted(_GO_ON), cancel)
        with self.recorder.continuation(turn) as recording:
            renderer = TeeRenderer(self.make_renderer(self.render), recording)
            self.conversation, answer = continue_turn(
                backend, self.conversation, self.settings, renderer, cancel
            )
        return self._noted(answer)

    def undo(self, count: int) -> Sequence[Turn]:
        """The turns that are gone, as the screen counts them; UsageError where there are not as many.

        Where that is more than the model still has, what it had lost before them comes back.
        """
        self._last(count)
        removed = self._shown[-count:]
        more = count - len(self.conversation.turns) + self.summaries
        if more <= 0:
            self.conversation = self.conversation.without_last(count)
            self.recorder.turns_removed(removed)
        else:
            here, copied = self.conversation.turns, self.conversation.turns[: self.summaries]
            back = replace(self.conversation, turns=self.earlier[: len(self.earlier) - more])
            self.earlier, self.summaries = (), 0
            if any(turn.saved is not None for turn in copied):  # /summarize went on in a copy: so does this
                self.recorder.turns_removed(here[len(copied) :])
                back = self.recorder.fork(back)
            else:
                self.recorder.turns_removed(removed)
            self.conversation = back
        self.last = None
        return removed

    def replaces(self, count: int) -> str:
        """The question `count` turns back; the next one takes its place and that of all after it."""
        question = self._in_context(count).question.content
        self.rewind = count
        return question

    def answer(self, count: int) -> str:
        """The one `count` turns back."""
        return self._last(count).answer.content

    def summarize(self, backend: Backend, cancel: Cancel) -> int:
        """Put a summary in the place of all but the last turn; how many went. The file keeps them all."""
        if len(self.conversation.turns) < 2:
            raise UsageError("There is too little to summarize.", "It needs two turns or more.")
        self._own_ids(backend)
        count = len(self.conversation.turns) - 1
        shorter = summarize_turns(backend, self.conversation, count, self.settings.sampling, cancel)
        self._note_shortened(self.conversation, shorter)
        self.conversation, self.last = self.recorder.fork(shorter), None
        return count

    def fresh(self, conversation: Conversation, session: int | None) -> None:
        """Go on with another conversation."""
        self.conversation = conversation
        self.recorder.go_on_with(session)
        self.checked = False
        self.last, self.rewind, self.attachments = None, 0, []
        self.earlier, self.summaries = (), 0

    def replay(self) -> None:
        """Show the last turns that fit one screen, and say how many there are before them."""
        columns, rows = get_terminal_size()
        shown = select_last_turns(self.conversation.turns, columns, rows)
        if earlier := len(self.conversation.turns) - len(shown):
            self.say(f"[{counted(earlier, 'earlier turn')} not shown; /export FILE writes them all]\n")
        for turn in shown:
            self.say(f"> {format_question(turn, columns - 2, rows)}")
            self.show(turn.answer)
            self.say("[interrupted]\n" if turn.finish_reason == "interrupted" else "")

    def show(self, answer: Message) -> None:
        """As answers are shown."""
        renderer = self.make_renderer(self.render)
        renderer.delta(answer.content)
        renderer.abort()

    def answered_by(self, model: str) -> None:
        """From now on; the ids of tokens are those of the model that wrote them."""
        if model != self.recorder.model:
            self.recorder.model = model
            self.conversation, self.last = self.conversation.without_ids(), None

    def set_system(self, text: str | None) -> None:
        self.system = text
        self.conversation = replace(self.conversation, system=system_for(self.mode, text))
        self.recorder.set_system(text)

    def _own_ids(self, backend: Backend) -> None:
        """Before the first answer to a saved conversation: another model may lie where its own did."""
        if not self.checked:
            self.conversation = drop_foreign_ids(self.conversation, backend, self.say)
            self.checked = True

    @property
    def _shown(self) -> tuple[Turn, ...]:
        """What is on the screen."""
        return (*self.earlier, *self.conversation.turns[self.summaries :])

    def _note_shortened(self, before: Conversation, after: Conversation) -> None:
        """The oldest turns have gone, or a summary has taken their place."""
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
        """As `_last`, of those that the model still has."""
        turn = self._last(count)
        if count > len(self.conversation.turns) - self.summaries:
            raise UsageError("That turn is no longer in the context.", "Go back to it with /undo, and ask.")
        return turn

    def _last(self, count: int) -> Turn:
        """The turn so many back."""
        turns = self._shown
        if not turns:
            raise UsageError("Nothing has been said yet.", "Ask something first.")
        if count > len(turns):
            said = "one turn" if len(turns) == 1 else f"{len(turns)} turns"
            raise UsageError(f"This chat has {said}, not {count}.", "Give a smaller number.")
        return turns[-count]

    def _with_files(self, question: PromptText, backend: Backend) -> str:
        names, missing = find_mentions(question.text, question.pasted)
        files = [*self.attachments]
        for name in names:
            try:
                files.append(read_attachment(name))
            except NotFoundError:  # it is gone, or opens and cannot be read
                missing.append(name)
        for name in missing:
            self.say(f"[there is no file {one_line(name)}: it is sent as text]")
        for file in files:
            self.say(f"[with {one_line(file.name)}: {file.size(backend)}]")
        return prepend_attachments(question.text, files)

    def _noted(self, answer: Answer) -> Answer:
        self.last = answer
        self.totals.add(answer)
        return answer
