"""Marks put into a conversation's text, so that it can be recognised in the output of a template."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain

_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))


@dataclass(frozen=True)
class Markers:
    """Two strings that do not occur in the conversation, so that no text in it can imitate them.

    The text between two `edge` is encoded by itself; `joint` splits the name of a control token.
    """

    edge: str
    joint: str

    def split_name(self, name: re.Match[str]) -> str:
        """The name of a control token, marked as text."""
        return f"{self.edge}{name[0][0]}{self.joint}{name[0][1:]}{self.edge}"

    def placeholder(self, index: int) -> str:
        """The placeholder for a message whose ids are known."""
        return f"{self.edge}{self.joint * 2}{index}{self.edge}"

    def message_index(self, piece: str) -> int | None:
        """The index of the message whose placeholder `piece` is; None for other text."""
        number = piece.removeprefix(self.joint * 2)
        return int(number) if number != piece and number.isascii() and number.isdecimal() else None

    def are_intact(self, rendered: str) -> bool:
        """Whether the template left every placeholder unchanged."""
        placeholder = rf"{self.joint * 2}\d+"
        return len(re.findall(self.joint * 2, rendered)) == len(
            re.findall(f"{self.edge}{placeholder}{self.edge}", rendered)
        )

    def remove(self, text: str) -> str:
        return text.replace(self.edge, "").replace(self.joint, "")


def split_letters(text: str, markers: Markers) -> str:
    """`text` with a mark between all letters and at both ends; outer whitespace stays outside."""
    core = text.strip()
    before, _, after = text.partition(core) if core else (text, "", "")
    joint = markers.joint
    return f"{before}{markers.edge}{joint}{joint.join(core)}{joint}{markers.edge}{after}"


def markers_for(text: str) -> Markers:
    """Private-use characters that `text` does not contain; pairs of them if it contains them all."""
    free = (char for char in _private_characters() if char not in text)
    edge, joint = next(free, None), next(free, None)
    if edge and joint:
        return Markers(edge, joint)
    counts = Counter(text)
    rarest = min(_private_characters(), key=lambda char: counts[char])
    followers = {text[at + 1 : at + 2] for at, char in enumerate(text) if char == rarest}
    # The two characters of a pair differ, so that two pairs never overlap.
    pairs = (rarest + char for char in _private_characters() if char not in followers and char != rarest)
    return Markers(next(pairs), next(pairs))


def _private_characters() -> chain[str]:
    return map(chr, chain(*_PRIVATE))  # type: ignore[return-value]
