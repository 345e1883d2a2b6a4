"""The interactive chat: a prompt that is up before the model is, and a conversation that survives Ctrl-C."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Event as Cancel
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat import slash
from localgemma_cli.chat.background import BackgroundLoad
from localgemma_cli.chat.interrupt import cancelling
from localgemma_cli.chat.terminal import pending, unechoed
from localgemma_cli.chat.turn import Settings, run_turn
from localgemma_cli.conversation import Conversation
from localgemma_cli.environment import Streams
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.render.base import Answer, Renderer
from localgemma_cli.render.progress import describe, on_stderr
from localgemma_cli.render.sanitize import visible
from localgemma_cli.sampling import Mode, system_for

_WATCH_SECONDS = 0.1


@dataclass(frozen=True)
class Chat:
    """What an interactive chat is made of; `label` says in the bottom bar who answers."""

    label: Callable[[], str]
    system: str | None
    mode: Mode
    settings: Settings
    make_renderer: Callable[[], Renderer]
    say: Callable[[str], None]
    report: Callable[[LocalGemmaError], None]
    quiet: bool


class Repl:
    def __init__(self, chat: Chat, load: BackgroundLoad, streams: Streams, keyboard: TextIO) -> None:
        self._chat, self._load, self._streams, self._keyboard = chat, load, streams, keyboard
        self._system = chat.system
        self._conversation = Conversation(system_for(chat.mode, chat.system))
        self._last: Answer | None = None
        self._left = False
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_key_bindings(),
            bottom_toolbar=self._toolbar,
            input=create_input(keyboard),
            output=create_output(streams.stdout if streams.stdout.isatty() else streams.stderr),
        )

    def run(self, first: str | None) -> None:
        """Chat until the user leaves; raises what loading raised."""
        with unechoed(self._keyboard) as typed:
            store_typeahead(self._session.input, _key_presses(typed))
            draft = self._ask(first) if first else ""
            while not self._left:
                try:
                    draft = self._handle(self._session.prompt(default=draft, pre_run=self._watch_load))
                except KeyboardInterrupt:
                    draft = ""
                except EOFError:
                    return

    def _handle(self, line: str) -> str:
        """Do what a line says; what is left of it to edit, where it could not be sent."""
        match slash.parse(line):
            case slash.Say(question):
                return self._ask(question)
            case slash.Command(name, argument):
                self._command(name, argument)
            case slash.Unknown(name, nearest):
                hint = f"Did you mean {nearest}?" if nearest else "/help lists the commands."
                self._chat.say(f"There is no command {visible(name)}. {hint} As a text: /{visible(name)}")
        return ""

    def _command(self, name: str, argument: str) -> None:
        match name:
            case "/help":
                self._chat.say(slash.help_text())
            case "/new":
                self._conversation = Conversation(self._conversation.system)
                self._last = None
                self._chat.say("A new conversation.")
            case "/system":
                self._set_system(argument)
            case "/exit":
                self._left = True

    def _set_system(self, text: str) -> None:
        if text:
            self._system = None if text == "-" else text
            self._conversation = replace(self._conversation, system=system_for(self._chat.mode, self._system))
        self._chat.say(
            f"System text: {visible(self._system)}" if self._system else "There is no system text."
        )

    def _ask(self, question: str) -> str:
        """One turn; returns the question where Ctrl-C ended the wait for the model."""
        cancel = Cancel()
        with cancelling(cancel, second_raises=False):
            if self._cancelled_already():
                return question
            backend = self._loaded(cancel)
            if backend is None:
                return question
            try:
                self._conversation, self._last = run_turn(
                    backend,
                    self._conversation,
                    question,
                    self._chat.settings,
                    self._chat.make_renderer(),
                    cancel,
                )
            except LocalGemmaError as error:
                self._chat.report(error)
                return question
        if self._last.finished.error is not None:
            self._chat.report(self._last.finished.error)
            self._chat.say("[broken off; the answer so far stays in the conversation]")
        elif self._last.finished.finish_reason == "interrupted":
            self._chat.say("[interrupted; the answer so far stays in the conversation]")
        elif self._last.finished.finish_reason == "length":
            self._chat.say("[cut off: the answer reached its longest length]")
        self._chat.say("")
        return ""

    def _cancelled_already(self) -> bool:
        """Whether a Ctrl-C followed so fast on Enter that the prompt still took it for a key."""
        keyboard = self._session.input
        presses = get_typeahead(keyboard) + _key_presses(pending(self._keyboard))
        last = max((at for at, press in enumerate(presses) if press.key == Keys.ControlC), default=-1)
        store_typeahead(keyboard, presses[last + 1 :])
        return last >= 0

    def _loaded(self, cancel: Cancel) -> Backend | None:
        """Wait for the model, saying how far it is; None where Ctrl-C came first."""
        self._load.start()
        if not self._load.done.is_set():
            with on_stderr(self._streams.stderr, quiet=self._chat.quiet) as progress:
                while not self._load.done.wait(_WATCH_SECONDS):
                    progress(self._load.progress)
                    if cancel.is_set():
                        return None
        return self._load.result()

    def _watch_load(self) -> None:
        """While the prompt is up: keep the bar fresh until the model is there, and leave where it failed."""
        if not self._load.done.is_set() or self._load.error is not None:
            get_app().create_background_task(self._watch())

    async def _watch(self) -> None:
        await asyncio.sleep(0)  # lets the prompt be drawn first
        self._load.start()
        while not self._load.done.is_set():
            await asyncio.sleep(_WATCH_SECONDS)
            self._session.app.invalidate()
        if self._load.error is not None:
            self._session.app.exit(exception=self._load.error)

    def _toolbar(self) -> str:
        if not self._load.done.is_set():
            return f" {self._chat.label()} · {describe(self._load.progress)} (you can type already)"
        if self._last is None:
            return f" {self._chat.label()} · /help"
        figures = _figures(self._last, self._load.result().context_length)
        return " · ".join((f" {self._chat.label()}", *figures))


def _figures(answer: Answer, context: int | None) -> Iterator[str]:
    """What is known of them: a server need not count."""
    usage, rate = answer.finished.usage, answer.finished.timing.decode_tokens_per_second
    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
        used = usage.prompt_tokens + usage.completion_tokens
        yield f"{used}/{context} tokens" if context else f"{used} tokens"
    if rate is not None:
        yield f"{rate:.1f} tok/s"


def _key_presses(typed: str) -> list[KeyPress]:
    presses: list[KeyPress] = []
    Vt100Parser(presses.append).feed_and_flush(typed)
    return presses


def _key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter and Ctrl-J start a new line; Ctrl-C clears what is typed."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return bindings
