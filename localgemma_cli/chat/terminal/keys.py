"""What keys do at the prompt."""

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


class EnterKey:
    """Enter sends and Alt-Enter begins a new line; `swapped` the other way round.

    `line` is what the prompt has, `cleared` hears that Ctrl-C has taken it back, `paste` gets what is pasted.
    """

    def __init__(
        self, line: Callable[[], PromptText], cleared: Callable[[], None], paste: Callable[[str], None]
    ) -> None:
        self.swapped = False
        self._line, self._cleared, self._paste = line, cleared, paste

    def bindings(self, editing: EditingMode) -> KeyBindings:
        """Ctrl-C clears what is typed; Ctrl-J begins a line; in vi mode Alt-Enter is Escape, then Enter."""
        bindings = KeyBindings()

        @bindings.add("enter", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            self._pressed(event, sends=not self.swapped)

        @bindings.add(
            "escape", "enter", filter=Condition(lambda: editing is EditingMode.EMACS or self.swapped)
        )
        def _(event: KeyPressEvent) -> None:
            self._pressed(event, sends=self.swapped)

        @bindings.add("c-j")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add(
            "escape", filter=has_completions & Condition(lambda: editing is EditingMode.EMACS), eager=True
        )
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.cancel_completion()

        @bindings.add(Keys.BracketedPaste, filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            self._paste(event.data.replace("\r\n", "\n").replace("\r", "\n"))

        @bindings.add("tab", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            _complete(event.current_buffer)

        @bindings.add("c-c", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.reset()
            self._cleared()

        return bindings

    def _pressed(self, event: KeyPressEvent, *, sends: bool) -> None:
        buffer = event.current_buffer
        menu = buffer.complete_state
        if menu and menu.current_completion and len(menu.completions) > 1:
            buffer.complete_state = None  # takes what is chosen, and sends nothing yet
        elif sends and not opens_block(self._line()):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")


def _complete(buffer: Buffer) -> None:
    """At once where only one thing can be meant: the menu comes too late for an Enter that follows fast."""
    if buffer.complete_state is None and buffer.completer is not None:
        found = list(islice(buffer.completer.get_completions(buffer.document, CompleteEvent(True)), 2))
        if len(found) == 1:
            buffer.apply_completion(found[0])
            return
        buffer.start_completion(insert_common_part=True)
    else:
        buffer.complete_next()
