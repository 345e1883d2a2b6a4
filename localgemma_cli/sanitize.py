"""Make text from outside safe for a terminal: control characters become visible symbols.

Imports nothing from the package, since the streams use it.
"""

import re

_CONTROL_PICTURES = 0x2400  # U+2400.. are pictures of U+0000..U+001F; U+2421 is that of U+007F
_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))

_VISIBLE = {
    **{code: chr(_CONTROL_PICTURES + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **{code: f"<{code:02X}>" for code in range(0x80, 0xA0)},
    **{code: f"<U+{code:04X}>" for code in (*_BIDI, 0x2028, 0x2029)},
}

_LINE_END = re.compile(r"\n(?=\S)")


def visible(text: str) -> str:
    """Replace C0 (except tab and newline), DEL, C1 and bidirectional controls by visible symbols."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """Text as it is quoted in a message: on one line, without control characters."""
    return visible(" ".join(text.split()))


class Block(str):
    """Text whose line ends are the program's own; a plain `str` may quote a name with line ends."""

    __slots__ = ()


def sanitize_message(text: str) -> str:
    """Text for a terminal: no control characters, and quoted line ends are indented.

    The indent keeps a quoted name from imitating a message of the program.
    """
    return visible(text if isinstance(text, Block) else _LINE_END.sub("\n  ", text))
