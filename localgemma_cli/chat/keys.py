"""What keys do at the prompt."""

from collections.abc import Callable

from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_BLOCK = '"""'


class EnterKey:
    """Enter sends and Alt-Enter begins a new line; `swapped` the other way round.

    `cleared` hears that Ctrl-C has taken back what was typed.
    """

    def __init__(self, cleared: Callable[[], None]) -> None:
        self.swapped = False
        self._cleared = cleared

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
        elif sends and not _block_is_open(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")


def _block_is_open(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith(_BLOCK) and not (len(stripped) >= 6 and stripped.endswith(_BLOCK))
