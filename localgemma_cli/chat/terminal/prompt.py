"""The prompt of the chat: reads one line at a time, with its keys, history, completion and toolbar."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.application.current import create_app_session
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.output import create_output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.utils import is_dumb_terminal

from localgemma_cli.chat.prompt_text import PromptText, Spans
from localgemma_cli.chat.terminal.completion import completes_while_typing
from localgemma_cli.chat.terminal.input_history import input_history
from localgemma_cli.chat.terminal.keys import PromptKeys
from localgemma_cli.chat.terminal.paste_tracker import PasteTracker
from localgemma_cli.chat.terminal.terminal_state import keep_keystrokes, parse_keys, read_pending_keys
from localgemma_cli.chat.terminal.typed_ahead import Keystrokes, format_held, has_enter, split_keys
from localgemma_cli.errors import LocalGemmaError, UsageError, as_user_error
from localgemma_cli.render.messages import has_colour


@dataclass(frozen=True)
class PromptOptions:
    """How the prompt looks and works; `input_history` is None if what is typed is not kept."""

    accessible: bool
    vi: bool
    input_history: Path | None


class ChatPrompt:
    """The prompt of one chat.

    `toolbar` returns the text below the prompt; `say` prints a line, `report` an error.
    `on_clear` is called when Ctrl-C clears the line.
    """

    def __init__(
        self,
        options: PromptOptions,
        terminal: TextIO,
        keyboard: TextIO,
        completer: Completer,
        toolbar: Callable[[], str],
        say: Callable[[str], None],
        report: Callable[[LocalGemmaError], None],
        on_clear: Callable[[], None],
    ) -> None:
        self._keyboard, self._say, self._report, self._on_clear = keyboard, say, report, on_clear
        self._on_open: Callable[[], None] = lambda: None
        self._is_working = self._opens_editor = False
        self._held: list[Keystrokes] = []  # lines typed ahead that wait for their turn
        self.keys = PromptKeys(self._current, self._clear, lambda text: self._pastes.paste(text))
        known: dict[str, Spans] = {}
        editing = EditingMode.VI if options.vi else EditingMode.EMACS
        output = (PlainTextOutput if is_dumb_terminal() else create_output)(terminal)
        with create_app_session(output=output):  # passed directly, it would disable the dumb-terminal prompt
            self._session: PromptSession[str] = PromptSession(
                [("bold ansigreen" if has_colour(terminal) else "", "> ")],
                multiline=True,
                prompt_continuation="  ",
                key_bindings=self.keys.bindings(editing),
                editing_mode=editing,
                history=input_history(options.input_history, known, lambda: self._pastes.pasted),
                completer=completer,
                complete_while_typing=not options.accessible and Condition(completes_while_typing),
                reserve_space_for_menu=4,
                enable_open_in_editor=True,
                enable_suspend=True,
                bottom_toolbar=None if options.accessible else toolbar,
                input=create_input(keyboard),
            )
        self._pastes = PasteTracker(self._session.default_buffer, known)

    @property
    def input(self) -> Input:
        return self._session.input

    def read(self, draft: PromptText, *, cancelled: bool, on_open: Callable[[], None]) -> PromptText:
        """Read a line, beginning with `draft`; raises EOFError at Ctrl-D.

        After a cancelled answer, lines typed ahead are not sent. `on_open` is called once the prompt is up.
        """
        self._hold_lines(draft, cancelled)
        self._pastes.begin(draft)
        self._on_open = on_open
        text = self._session.prompt(default=draft.text, pre_run=self._opened, set_exception_handler=False)
        line = PromptText(text, self._pastes.pasted)
        self._pastes.remember(line)
        return line

    def open_editor_next(self) -> None:
        """Open the next draft in the user's editor, if one is set."""
        self._opens_editor = bool(os.environ.get("VISUAL") or os.environ.get("EDITOR"))

    @contextmanager
    def own_terminal(self, interrupted: Callable[[], None]) -> Iterator[None]:
        """Own the terminal during the chat, and restore its modes even if a signal ends the program.

        `interrupted` is called at a Ctrl-C.
        """
        try:
            with keep_keystrokes(self._keyboard, self._resumed, interrupted) as typed:
                store_typeahead(self._session.input, parse_keys(typed))
                yield
        finally:
            if not is_dumb_terminal():
                with suppress(OSError):  # the terminal is gone
                    self._session.output.disable_bracketed_paste()
                    self._session.output.reset_attributes()
                    self._session.output.show_cursor()
                    self._session.output.flush()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the prompt is not up: a page pasted then is still one message."""
        self._is_working = not is_dumb_terminal()
        self._resumed()
        try:
            yield
        finally:
            self._is_working = False

    def _resumed(self) -> None:
        if self._is_working:
            self._session.output.enable_bracketed_paste()
            self._session.output.flush()

    def _hold_lines(self, draft: PromptText, cancelled: bool) -> None:
        """Hold lines typed ahead after a Ctrl-C or before a draft; they return to the prompt one by one."""
        ahead = read_pending_keys(self._session.input)
        if draft.text or self._held or (cancelled and has_enter(ahead)):
            self._held += split_keys(ahead, swapped=self.keys.swapped)
            ahead = [] if draft.text or not self._held else list(self._held.pop(0))
        store_typeahead(self._session.input, ahead)
        if self._held:
            self._say(format_held(self._held))

    def _current(self) -> PromptText:
        return PromptText(self._session.default_buffer.text, self._pastes.pasted)

    def _clear(self) -> None:
        self._pastes.begin(PromptText())
        self._on_clear()
        if self._held:
            get_app().key_processor.feed_multiple(list(self._held.pop(0)))

    def _opened(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._report_failure)
        self._on_open()
        if self._opens_editor:
            self._opens_editor = False
            get_app().current_buffer.open_in_editor()

    def _report_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what a key failed to do in one line and keep the text; the library shows a traceback."""
        match context.get("exception"):
            case None:
                return
            case UnicodeDecodeError():
                error: LocalGemmaError = UsageError(
                    "The editor saved text that is not UTF-8.", "Your text is unchanged."
                )
            case OSError(strerror=reason):
                error = UsageError(f"Cannot use the editor: {reason}.", "Check TMPDIR and EDITOR.")
            case other:
                error = as_user_error(other)
        run_in_terminal(partial(self._report, error))
