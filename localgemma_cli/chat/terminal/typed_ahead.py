"""Lines typed ahead that may not be sent now: they wait, and come to the prompt one by one."""

from collections.abc import Sequence

from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from localgemma_cli.chat.slash.outcome import short

Keystrokes = tuple[KeyPress, ...]  # of one line, without the Enter that would have sent it


def ends_a_line(presses: Sequence[KeyPress]) -> bool:
    """Whether there is an Enter in them."""
    return any(press.key == Keys.ControlM for press in presses)


def lines_of(presses: Sequence[KeyPress], *, swapped: bool) -> list[Keystrokes]:
    """The keys of each line; what the last one has behind it is one too. `swapped`: Alt-Enter sends."""
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


def notice(lines: Sequence[Keystrokes]) -> str:
    """What waits, as it will read."""
    return f"[typed ahead and not sent: {', '.join(f'“{short(_spelled(line))}”' for line in lines)}]"


def _spelled(line: Keystrokes) -> str:
    """About what the prompt will make of those keys."""
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
