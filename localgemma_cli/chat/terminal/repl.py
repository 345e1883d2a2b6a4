"""The interactive chat: a prompt that is up before the model is, and a conversation that survives Ctrl-C."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event as Cancel
from threading import current_thread, main_thread
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.application.current import create_app_session
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.utils import is_dumb_terminal

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.background_load import BackgroundLoad
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.interrupt import InterruptibleBackend, Status, cancel_on_sigint
from localgemma_cli.chat.model_switcher import ModelSwitcher
from localgemma_cli.chat.prompt_text import PromptText, Spans, as_pasted
from localgemma_cli.chat.slash import slash_commands as slash
from localgemma_cli.chat.slash.actions import KEYS, perform
from localgemma_cli.chat.slash.outcome import (
    Ask,
    CommandContext,
    Copy,
    Do,
    Edit,
    Outcome,
    Switch,
    counted,
    short,
)
from localgemma_cli.chat.terminal.clipboard import copy
from localgemma_cli.chat.terminal.completion import ChatCompleter, completes_by_itself
from localgemma_cli.chat.terminal.input_history import input_history
from localgemma_cli.chat.terminal.keys import EnterKey
from localgemma_cli.chat.terminal.paste_tracker import PasteTracker
from localgemma_cli.chat.terminal.terminal_state import key_presses, pressed, read_ahead, unechoed
from localgemma_cli.chat.terminal.toolbar import figures, fitted, vi_mode
from localgemma_cli.chat.terminal.typed_ahead import Keystrokes, ends_a_line, lines_of, notice
from localgemma_cli.environment import Streams
from localgemma_cli.errors import (
    EXIT_EXCEPTIONS,
    InterruptedAnswer,
    LocalGemmaError,
    UsageError,
    as_user_error,
)
from localgemma_cli.render.base import Answer
from localgemma_cli.render.messages import has_colour
from localgemma_cli.render.progress import describe_progress
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import normalize

_WATCH_SECONDS = 0.1
_AGAIN = "Send it again when you like."
_NAMES = 20  # of saved conversations that are offered


@dataclass(frozen=True)
class ReplConfig:
    """What is around a chat; `label` says who answers, `input_history` is None where none is kept."""

    label: Callable[[], str]
    plan: Callable[[], str]
    model: Callable[[], str]
    report: Callable[[LocalGemmaError], None]
    quiet: bool
    accessible: bool
    status: Status
    vi: bool
    input_history: Path | None


class Repl:
    def __init__(
        self,
        session: ChatSession,
        frame: ReplConfig,
        models: ModelSwitcher,
        streams: Streams,
        keyboard: TextIO,
    ) -> None:
        self._session, self._frame, self._models = session, frame, models
        models.wrap = lambda backend: InterruptibleBackend(backend, lambda: self._cancel, frame.status)
        self._streams, self._keyboard = streams, keyboard
        self._cancel = Cancel()
        self._facts = CommandContext(frame.plan, frame.model, self._loaded, self._ready)
        self._left = self._noted = self._in_editor = self._busy = False
        self._unknown = ""  # a line that named no command
        self._waiting: list[Keystrokes] = []
        self._enter = EnterKey(self._line, self._cleared, lambda text: self._typing.paste(text))
        known: dict[str, Spans] = {}
        self._terminal = streams.stdout if streams.stdout.isatty() else streams.stderr
        editing = EditingMode.VI if frame.vi else EditingMode.EMACS
        output = (PlainTextOutput if is_dumb_terminal() else create_output)(self._terminal)
        with create_app_session(output=output):  # given directly, it would rule the prompt's dumb form out
            self._prompt: PromptSession[str] = PromptSession(
                [("bold ansigreen" if has_colour(self._terminal) else "", "> ")],
                multiline=True,
                prompt_continuation="  ",
                key_bindings=self._enter.bindings(editing),
                editing_mode=editing,
                history=input_history(frame.input_history, known, lambda: self._typing.pasted),
                completer=ChatCompleter(KEYS, self._names),
                complete_while_typing=Condition(completes_by_itself)
                & Condition(lambda: not frame.accessible),
                reserve_space_for_menu=4,
                enable_open_in_editor=True,
                enable_suspend=True,
                bottom_toolbar=None if frame.accessible else self._toolbar,
                input=create_input(keyboard),
            )
        self._typing = PasteTracker(self._prompt.default_buffer, known)

    @property
    def _load(self) -> BackgroundLoad:
        return self._models.load

    def run(self, first: str | None) -> None:
        """Chat until the user leaves; raises what loading raised."""
        with self._own_terminal() as typed:
            store_typeahead(self._prompt.input, key_presses(typed))
            draft = PromptText()
            if first:
                with self._at_work():
                    draft = self._guarded(self._send, as_pasted(first))
            while not self._left:
                try:
                    self._hold_back(draft)
                    self._typing.begin(draft)
                    text = self._prompt.prompt(
                        default=draft.text, pre_run=self._before_prompt, set_exception_handler=False
                    )
                    line = PromptText(text, self._typing.pasted)
                    self._typing.remember(line)
                    with self._at_work():
                        draft = self._guarded(self._handle, line)
                except KeyboardInterrupt:
                    draft = PromptText()
                except EOFError:
                    return

    @contextmanager
    def _own_terminal(self) -> Iterator[str]:
        """A signal that ends the program leaves the prompt no time to put its own modes back."""
        try:
            with unechoed(self._keyboard, self._resumed) as typed:
                yield typed
        finally:
            if not is_dumb_terminal():
                with suppress(OSError):  # it has hung up
                    self._prompt.output.disable_bracketed_paste()
                    self._prompt.output.reset_attributes()
                    self._prompt.output.show_cursor()
                    self._prompt.output.flush()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """While no prompt is up."""
        if is_dumb_terminal():
            yield
            return
        self._busy = True
        self._resumed()
        try:
            yield
        finally:
            self._busy = False

    def _resumed(self) -> None:
        """A page pasted while no prompt is up is one message as well."""
        if self._busy:
            self._prompt.output.enable_bracketed_paste()
            self._prompt.output.flush()

    def _hold_back(self, draft: PromptText) -> None:
        """Lines typed ahead are not sent after a Ctrl-C, nor glued to a draft; they wait for their turn."""
        ahead = pressed(self._prompt.input)
        cancelled = self._cancel.is_set() and ends_a_line(ahead)
        if draft.text or cancelled or self._waiting:
            self._waiting += lines_of(ahead, swapped=self._enter.swapped)
            ahead = [] if draft.text or not self._waiting else list(self._waiting.pop(0))
        store_typeahead(self._prompt.input, ahead)
        if self._waiting:
            self._session.say(notice(self._waiting))

    def _line(self) -> PromptText:
        return PromptText(self._prompt.default_buffer.text, self._typing.pasted)

    def _cleared(self) -> None:
        self._typing.begin(PromptText())
        self._keep_turns()
        if self._waiting:
            get_app().key_processor.feed_multiple(list(self._waiting.pop(0)))

    def _guarded(self, handle: Callable[[PromptText], PromptText], line: PromptText) -> PromptText:
        """What `handle` gives; only the user ends a chat: what else goes wrong is told, and `line` kept."""
        self._cancel = Cancel()
        try:
            return handle(line)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # some are no Exception: a panic of a library in Rust
            if self._ends(error):
                raise
            self._frame.report(as_user_error(error))
            return line

    def _send(self, question: PromptText) -> PromptText:
        return PromptText() if self._ask(Ask(question)) else question

    def _handle(self, line: PromptText) -> PromptText:
        """Do what a line says; what is left of it to edit, where it could not be sent."""
        line = line.map_parts(normalize)
        match slash.parse(line):
            case slash.Say(question):
                return PromptText() if self._ask(Ask(question)) else line
            case slash.Command(name, argument):
                self._keep_turns()
                return self._command(name, argument)
            case slash.Unknown() if line.text == self._unknown:
                return self._send(line.strip())
            case slash.Unknown(name, nearest, long):
                hint = f"Did you mean {nearest}?" if nearest else "/help lists the commands."
                text = "Enter again sends it as text." if long else "//… sends it as text."
                self._session.say(f"There is no command {short(name)}. {hint} {text}")
                self._unknown = line.text if long else ""
                return line if long else PromptText()
            case None:
                self._keep_turns()
        return PromptText()

    def _keep_turns(self) -> None:  # those that an edit was to replace
        self._session.rewind = 0

    def _command(self, name: str, argument: str) -> PromptText:
        outcomes: list[Outcome] = []
        self._cancellable(lambda: outcomes.append(perform(self._session, self._facts, name, argument)))
        match outcomes[0] if outcomes else None:
            case Ask() as ask:
                self._ask(ask)
                self._keep_turns()
            case Edit(text):
                self._in_editor = bool(os.environ.get("VISUAL") or os.environ.get("EDITOR"))
                return as_pasted(text)
            case Copy(text):
                self._session.say(copy(text, self._terminal))
            case Do("continue"):
                self._answered(lambda backend: self._session.go_on(backend, self._cancel))
            case Do("summarize"):
                self._summarize()
            case Switch(model):
                self._models.switch(model)
                self._noted = False
                self._session.say(f"[switching to {one_line(model)}; the conversation stays]")
            case Do("multiline"):
                self._enter.swapped = not self._enter.swapped
                how = "begins a new line, Alt-Enter sends" if self._enter.swapped else "sends"
                self._session.say(f"Enter {how}.")
            case Do("exit"):
                self._left = True
        return PromptText()

    def _ask(self, ask: Ask) -> bool:
        """One turn; whether an answer to it is kept."""
        return self._answered(
            lambda backend: self._session.ask(backend, ask.question, self._cancel, ask.sampling)
        )

    def _summarize(self) -> None:
        def action(backend: Backend) -> None:
            self._session.say("[summarizing; Ctrl-C stops it]")
            count = self._session.summarize(backend, self._cancel)
            saved = "; they stay saved" if self._session.recorder.session is not None else ""
            self._session.say(f"[{counted(count, 'turn')} summarized{saved}]")
            self._session.show(self._session.conversation.turns[0].answer)

        self._with_model(action)

    def _answered(self, action: Callable[[Backend], Answer]) -> bool:
        answers: list[Answer] = []
        self._with_model(lambda backend: answers.append(action(backend)))
        if answers:
            self._tell_end(answers[0])
        return bool(answers)

    def _with_model(self, action: Callable[[Backend], None]) -> None:
        """Once the model is there."""

        def go() -> None:
            if self._cancelled_already():
                return
            with read_ahead(self._prompt.input):
                if (backend := self._loaded()) is not None:
                    self._tell_once(backend.note)
                    action(backend)

        self._cancellable(go)

    def _cancellable(self, action: Callable[[], None]) -> None:
        """Errors are reported, and Ctrl-C sets `_cancel`."""
        self._cancel = Cancel()
        recorder = self._session.recorder
        recorder.waiting = self._look
        if recorder.store is not None:
            recorder.store.waiting = self._look
        with cancel_on_sigint(self._cancel, second_raises=False):
            try:
                action()
            except LocalGemmaError as error:
                if self._ends(error):
                    raise
                self._frame.report(error)

    def _ends(self, error: BaseException) -> bool:
        """Whether it is what loading raised, with no model to go back to."""
        return error is self._load.error and not self._models.go_back()

    def _look(self) -> None:
        """Ends the waiting for another program that writes; threads wait on, and what they save is saved."""
        if self._cancel.is_set() and current_thread() is main_thread():
            raise InterruptedAnswer("Stopped while another program writes the conversations.", _AGAIN)

    def _tell_end(self, answer: Answer) -> None:
        finished = answer.finished
        if finished.error is not None:
            self._frame.report(finished.error)
            self._session.say("[broken off; the answer so far stays in the conversation]")
        elif finished.finish_reason == "interrupted":
            if self._session.conversation.turns[-1].answer.content:
                self._session.say("[interrupted; the answer so far stays, and /continue goes on with it]")
            else:
                self._session.say("[interrupted before the answer began; /retry asks again]")
        elif finished.finish_reason == "length":
            self._session.say("[cut off: the answer reached its longest length; /continue goes on with it]")
        self._session.say("")

    def _tell_once(self, note: str | None) -> None:
        if note and not self._noted:
            self._session.say(f"[{note}]")
        self._noted = True

    def _cancelled_already(self) -> bool:
        """Whether a Ctrl-C followed so fast on Enter that the prompt still took it for a key."""
        presses = pressed(self._prompt.input)
        others = [press for press in presses if press.key != Keys.ControlC]
        store_typeahead(self._prompt.input, others)
        if len(others) < len(presses):
            self._cancel.set()
        return self._cancel.is_set()

    def _ready(self) -> Backend | None:
        load = self._load
        return load.result() if load.done.is_set() and load.error is None else None

    def _loaded(self) -> Backend | None:
        """Wait for the model, saying how far it is; None where Ctrl-C came first."""
        self._load.start()
        if not self._load.done.is_set():
            with self._frame.status("starting") as progress:
                while not self._load.done.wait(_WATCH_SECONDS):
                    progress(self._load.progress)
                    if self._cancel.is_set():
                        return None
        backend = self._load.result()
        if self._models.switched:
            self._session.answered_by(self._models.model.model)
        return backend

    def _before_prompt(self) -> None:
        """While the prompt is up: keep the bar fresh until the model is there, and leave where it failed."""
        asyncio.get_running_loop().set_exception_handler(self._failed_at_prompt)
        if not self._load.done.is_set() or self._load.error is not None:
            get_app().create_background_task(self._watch())
        if self._in_editor:
            self._in_editor = False
            get_app().current_buffer.open_in_editor()

    def _failed_at_prompt(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a key began has failed: one line, and the text stays; the library would show a traceback."""
        match context.get("exception"):
            case None:
                return
            case UnicodeDecodeError():
                told: LocalGemmaError = UsageError(
                    "The editor saved no UTF-8 text.", "Your text is as before."
                )
            case OSError(strerror=reason):
                told = UsageError(f"The editor cannot be used: {reason}.", "Check TMPDIR and EDITOR.")
            case error:
                told = as_user_error(error)
        run_in_terminal(partial(self._frame.report, told))

    async def _watch(self) -> None:
        await asyncio.sleep(0)  # lets the prompt be drawn first
        while True:
            self._load.start()
            while not self._load.done.is_set():
                await asyncio.sleep(_WATCH_SECONDS)
                self._prompt.app.invalidate()
            if (error := self._load.error) is None:
                return
            if not self._models.go_back():
                self._prompt.app.exit(exception=error)
                return
            told = error if isinstance(error, LocalGemmaError) else as_user_error(error)
            await run_in_terminal(partial(self._frame.report, told))

    def _toolbar(self) -> str:
        mode = vi_mode()
        head = [self._frame.label(), *([mode] if mode else [])]
        if (backend := self._ready()) is None:
            return fitted([*head, describe_progress(self._load.progress), "you can type already"])
        last = self._session.last
        known = figures(last, backend.context_length) if last else ("/help",)
        files = len(self._session.attachments)
        return fitted([*head, *known, *([f"{files} attached"] if files else [])])

    def _names(self) -> list[str]:
        if (store := self._session.recorder.store) is not None:
            with suppress(LocalGemmaError):
                return [each.handle for each in store.summaries(limit=_NAMES)]
        return []
