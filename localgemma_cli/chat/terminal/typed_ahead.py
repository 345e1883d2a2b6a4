"""Lines typed ahead that are not sent yet: they wait, and return to the prompt one by one."""

from collections.abc import Sequence

from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from localgemma_cli.chat.phrases import shorten

Keystrokes = tuple[KeyPress, ...]  # of one line, without its Enter


def has_enter(presses: Sequence[KeyPress]) -> bool:
    return any(press.key == Keys.ControlM for press in presses)


def split_keys(presses: Sequence[KeyPress], *, swapped: bool) -> list[Keystrokes]:
    """The keys of each line, the unfinished last one included. `swapped`: Alt-Enter sends, not Enter."""
    lines: list[list[KeyPress]] = [[]]
    for press in presses:
        alt = bool(lines[-1]) and lines[-1][-1].key == Keys.Escape
        if press.key == Keys.ControlM and alt == swapped:
            if alt:
                lines[-1].pop()
            lines.append([])
        elif press.key != Keys.ControlC:
            lines[-1].append(press)
    return [tuple(line) for line in lines if line]


def format_held(lines: Sequence[Keystrokes]) -> str:
    """The notice about lines that wait."""
    return f"[typed ahead, not sent: {', '.join(f'“{shorten(_read_line(line))}”' for line in lines)}]"


def _read_line(line: Keystrokes) -> str:
    """The text that the prompt makes of these keys, approximately."""
    text = ""
    for press in line:
        if press.key == Keys.BracketedPaste or not isinstance(press.key, Keys):
            text += press.data
        elif press.key == Keys.ControlH:
            text = text[:-1]
        elif press.key == Keys.ControlU:
            text = ""
        elif press.key in (Keys.ControlJ, Keys.ControlM):
            text += "\n"
    return text
