"""What the keys do at the prompt."""

from collections.abc import Callable
from itertools import islice

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from localgemma_cli.chat.prompt_text import PromptText
from localgemma_cli.chat.slash.slash_commands import opens_block


class PromptKeys:
    """Enter sends and Alt-Enter starts a new line, unless they are `swapped`.

    `line` returns the text at the prompt; Ctrl-C calls `on_clear`, a paste calls `paste` with its text.
    """

    def __init__(
        self, line: Callable[[], PromptText], on_clear: Callable[[], None], paste: Callable[[str], None]
    ) -> None:
        self.swapped = False
        self._line, self._on_clear, self._paste = line, on_clear, paste

    def bindings(self, editing: EditingMode) -> KeyBindings:
        """Ctrl-C clears the line; Ctrl-J starts a new one; in vi mode Alt-Enter is Escape, then Enter."""
        bindings = KeyBindings()
        typing, emacs = ~is_searching, Condition(lambda: editing is EditingMode.EMACS)
        alt_enter = emacs | Condition(lambda: self.swapped)
        bindings.add("enter", filter=typing)(lambda event: self._press_enter(event, sends=not self.swapped))
        bindings.add("escape", "enter", filter=alt_enter)(
            lambda event: self._press_enter(event, sends=self.swapped)
        )
        bindings.add("c-j")(lambda event: event.current_buffer.insert_text("\n"))
        bindings.add("escape", filter=has_completions & emacs, eager=True)(
            lambda event: event.current_buffer.cancel_completion()
        )
        bindings.add(Keys.BracketedPaste, filter=typing)(
            lambda event: self._paste(event.data.replace("\r\n", "\n").replace("\r", "\n"))
        )
        bindings.add("tab", filter=typing)(lambda event: _complete(event.current_buffer))
        bindings.add("c-c", filter=typing)(self._press_ctrl_c)
        return bindings

    def _press_ctrl_c(self, event: KeyPressEvent) -> None:
        event.current_buffer.reset()
        self._on_clear()

    def _press_enter(self, event: KeyPressEvent, *, sends: bool) -> None:
        buffer = event.current_buffer
        menu = buffer.complete_state
        if menu and menu.current_completion and len(menu.completions) > 1:
            buffer.complete_state = None  # accept the choice, send nothing yet
        elif sends and not opens_block(self._line()):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")


def _complete(buffer: Buffer) -> None:
    """Complete at once if there is one candidate: the menu comes too late for a fast Enter."""
    if buffer.complete_state is None and buffer.completer is not None:
        found = list(islice(buffer.completer.get_completions(buffer.document, CompleteEvent(True)), 2))
        if len(found) == 1:
            buffer.apply_completion(found[0])
            return
        buffer.start_completion(insert_common_part=True)
    else:
        buffer.complete_next()
