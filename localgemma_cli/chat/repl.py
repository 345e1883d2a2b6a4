"""The interactive chat: a prompt that is up before the model is, and a conversation that survives Ctrl-C."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Cancel
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.application.current import get_app_or_none
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat import slash
from localgemma_cli.chat.actions import KEYS, perform
from localgemma_cli.chat.background import BackgroundLoad
from localgemma_cli.chat.clipboard import copy
from localgemma_cli.chat.complete import ChatCompleter
from localgemma_cli.chat.interrupt import cancelling
from localgemma_cli.chat.keys import EnterKey, key_presses
from localgemma_cli.chat.outcome import Ask, Copy, Do, Edit, Facts
from localgemma_cli.chat.session import ChatSession
from localgemma_cli.chat.terminal import pasting_in_brackets, pending, unechoed
from localgemma_cli.environment import Streams
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.render.base import Answer
from localgemma_cli.render.progress import describe, on_stderr
from localgemma_cli.render.sanitize import visible

_WATCH_SECONDS = 0.1


@dataclass(frozen=True)
class Frame:
    """What is around a chat; `label` says who answers, `input_history` is None where none is kept."""

    label: Callable[[], str]
    plan: Callable[[], str]
    model: str
    report: Callable[[LocalGemmaError], None]
    quiet: bool
    accessible: bool
    vi: bool
    input_history: Path | None


class Repl:
    def __init__(
        self, session: ChatSession, frame: Frame, load: BackgroundLoad, streams: Streams, keyboard: TextIO
    ) -> None:
        self._session, self._frame, self._load = session, frame, load
        self._streams, self._keyboard = streams, keyboard
        self._cancel = Cancel()
        self._facts = Facts(frame.plan, frame.model, self._loaded)
        self._left = self._noted = self._in_editor = False
        self._enter = EnterKey()
        editing = EditingMode.VI if frame.vi else EditingMode.EMACS
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            key_bindings=self._enter.bindings(editing),
            editing_mode=editing,
            history=_input_history(frame.input_history),
            completer=ChatCompleter(KEYS, self._names),
            complete_while_typing=Condition(_completes) & Condition(lambda: not frame.accessible),
            reserve_space_for_menu=4,
            enable_open_in_editor=True,
            enable_suspend=True,
            bottom_toolbar=None if frame.accessible else self._toolbar,
            input=create_input(keyboard),
            output=create_output(streams.stdout if streams.stdout.isatty() else streams.stderr),
        )

    def run(self, first: str | None) -> None:
        """Chat until the user leaves; raises what loading raised."""
        with unechoed(self._keyboard) as typed:
            store_typeahead(self._prompt.input, key_presses(typed))
            draft = self._ask(Ask(first)) if first else ""
            while not self._left:
                try:
                    line = self._prompt.prompt(default=draft, pre_run=self._before_prompt)
                    with pasting_in_brackets(self._prompt.output):
                        draft = self._handle(line)
                except KeyboardInterrupt:
                    draft = ""
                except EOFError:
                    return

    def _handle(self, line: str) -> str:
        """Do what a line says; what is left of it to edit, where it could not be sent."""
        match slash.parse(line):
            case slash.Say(question):
                return self._ask(Ask(question))
            case slash.Command(name, argument):
                self._session.rewind = 0
                return self._command(name, argument)
            case slash.Unknown(name, nearest):
                hint = f"Did you mean {nearest}?" if nearest else "/help lists the commands."
                self._session.say(f"There is no command {visible(name)}. {hint} As a text: /{visible(name)}")
            case None:
                self._session.rewind = 0
        return ""

    def _command(self, name: str, argument: str) -> str:
        try:
            outcome = perform(self._session, self._facts, name, argument)
        except LocalGemmaError as error:
            self._frame.report(error)
            return ""
        match outcome:
            case Ask():
                self._ask(outcome)
                self._session.rewind = 0
            case Edit(text):
                self._in_editor = bool(os.environ.get("VISUAL") or os.environ.get("EDITOR"))
                return text
            case Copy(text):
                self._session.say(copy(text, self._streams.stdout))
            case Do("continue"):
                self._answered(lambda backend: self._session.go_on(backend, self._cancel))
            case Do("summarize"):
                self._summarize()
            case Do("multiline"):
                self._enter.swapped = not self._enter.swapped
                how = "begins a new line, Alt-Enter sends" if self._enter.swapped else "sends"
                self._session.say(f"Enter {how}.")
            case Do("exit"):
                self._left = True
        return ""

    def _ask(self, ask: Ask) -> str:
        """One turn; the question again where no answer to it is kept."""
        done = self._answered(
            lambda backend: self._session.ask(backend, ask.question, self._cancel, ask.sampling)
        )
        return "" if done else ask.question

    def _summarize(self) -> None:
        def action(backend: Backend) -> None:
            count = self._session.summarize(backend, self._cancel)
            if not self._cancel.is_set():
                self._session.say(f"[{count} turns summarized; the whole conversation stays saved]")

        self._with_model(action)

    def _answered(self, action: Callable[[Backend], Answer]) -> bool:
        answers: list[Answer] = []
        self._with_model(lambda backend: answers.append(action(backend)))
        if answers:
            self._tell_end(answers[0])
        return bool(answers)

    def _with_model(self, action: Callable[[Backend], None]) -> None:
        """Once the model is there; errors are reported, and Ctrl-C sets `_cancel`."""
        self._cancel = Cancel()
        with cancelling(self._cancel, second_raises=False):
            if self._cancelled_already():
                return
            try:
                if (backend := self._loaded()) is not None:
                    self._tell_once(backend.note)
                    action(backend)
            except LocalGemmaError as error:
                if error is self._load.error:
                    raise
                self._frame.report(error)

    def _tell_end(self, answer: Answer) -> None:
        finished = answer.finished
        if finished.error is not None:
            self._frame.report(finished.error)
            self._session.say("[broken off; the answer so far stays in the conversation]")
        elif finished.finish_reason == "interrupted":
            self._session.say("[interrupted; the answer so far stays, and /continue goes on with it]")
        elif finished.finish_reason == "length":
            self._session.say("[cut off: the answer reached its longest length; /continue goes on with it]")
        self._session.say("")

    def _tell_once(self, note: str | None) -> None:
        if note and not self._noted:
            self._session.say(f"[{note}]")
        self._noted = True

    def _cancelled_already(self) -> bool:
        """Whether a Ctrl-C followed so fast on Enter that the prompt still took it for a key."""
        keyboard = self._prompt.input
        presses = get_typeahead(keyboard) + key_presses(pending(self._keyboard))
        last = max((at for at, press in enumerate(presses) if press.key == Keys.ControlC), default=-1)
        store_typeahead(keyboard, presses[last + 1 :])
        return last >= 0

    def _loaded(self) -> Backend | None:
        """Wait for the model, saying how far it is; None where Ctrl-C came first."""
        self._load.start()
        if not self._load.done.is_set():
            with on_stderr(
                self._streams.stderr, quiet=self._frame.quiet or self._frame.accessible
            ) as progress:
                while not self._load.done.wait(_WATCH_SECONDS):
                    progress(self._load.progress)
                    if self._cancel.is_set():
                        return None
        return self._load.result()

    def _before_prompt(self) -> None:
        """While the prompt is up: keep the bar fresh until the model is there, and leave where it failed."""
        if not self._load.done.is_set() or self._load.error is not None:
            get_app().create_background_task(self._watch())
        if self._in_editor:
            self._in_editor = False
            get_app().current_buffer.open_in_editor()

    async def _watch(self) -> None:
        await asyncio.sleep(0)  # lets the prompt be drawn first
        self._load.start()
        while not self._load.done.is_set():
            await asyncio.sleep(_WATCH_SECONDS)
            self._prompt.app.invalidate()
        if self._load.error is not None:
            self._prompt.app.exit(exception=self._load.error)

    def _toolbar(self) -> str:
        label = self._frame.label()
        if not self._load.done.is_set():
            return f" {label} · {describe(self._load.progress)} (you can type already)"
        last = self._session.last
        figures = _figures(last, self._load.result().context_length) if last else ("/help",)
        files = len(self._session.attachments)
        attached = (f"{files} attached",) if files else ()
        return " · ".join((f" {label}", *figures, *attached))

    def _names(self) -> list[str]:
        store = self._session.recorder.store
        return [each.name or str(each.id) for each in store.summaries(limit=20)] if store else []


def _completes() -> bool:
    """By itself only for commands and @paths; elsewhere on Tab."""
    app = get_app_or_none()
    text = app.current_buffer.document.text_before_cursor if app else ""
    return text.startswith("/") or text.split(" ")[-1].startswith("@")


def _input_history(path: Path | None) -> History:
    """Of all chats of this user, multi-line entries whole; private, and in memory only where it cannot be."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _figures(answer: Answer, context: int | None) -> Iterator[str]:
    """What is known of them: a server need not count."""
    usage, rate = answer.finished.usage, answer.finished.timing.decode_tokens_per_second
    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
        used = usage.prompt_tokens + usage.completion_tokens
        yield f"{used}/{context} tokens" if context else f"{used} tokens"
    if rate is not None:
        yield f"{rate:.1f} tok/s"
