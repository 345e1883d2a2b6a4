"""Marks in a conversation's text by which it is known again in what a template makes of it."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain

_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))


@dataclass(frozen=True)
class Markers:
    """Two texts that occur nowhere in the conversation, so that nothing in it can imitate them.

    Between two `edge` stands a piece that is encoded by itself; `joint` breaks a name in two.
    """

    edge: str
    joint: str

    def broken(self, name: re.Match[str]) -> str:
        """A control token's name, as text."""
        return f"{self.edge}{name[0][0]}{self.joint}{name[0][1:]}{self.edge}"

    def known(self, index: int) -> str:
        """What stands for the ids of a message."""
        return f"{self.edge}{self.joint * 2}{index}{self.edge}"

    def message(self, piece: str) -> int | None:
        """Which message's ids `piece` stands for."""
        number = piece.removeprefix(self.joint * 2)
        return int(number) if number != piece and number.isascii() and number.isdecimal() else None

    def are_whole(self, rendered: str) -> bool:
        """Whether what stands for ids came through the template as it was."""
        stands = rf"{self.joint * 2}\d+"
        return len(re.findall(self.joint * 2, rendered)) == len(
            re.findall(f"{self.edge}{stands}{self.edge}", rendered)
        )

    def without(self, text: str) -> str:
        return text.replace(self.edge, "").replace(self.joint, "")


def spread(text: str, markers: Markers) -> str:
    """Every two letters kept apart, and both ends; blanks around it stay outside, for a template to trim."""
    core = text.strip()
    before, _, after = text.partition(core) if core else (text, "", "")
    joint = markers.joint
    return f"{before}{markers.edge}{joint}{joint.join(core)}{joint}{markers.edge}{after}"


def markers_for(text: str) -> Markers:
    """Private-use characters that `text` does not hold; pairs of them where it holds every one."""
    free = (char for char in _private() if char not in text)
    edge, joint = next(free, None), next(free, None)
    if edge and joint:
        return Markers(edge, joint)
    counts = Counter(text)
    rarest = min(_private(), key=lambda char: counts[char])
    followers = {text[at + 1 : at + 2] for at, char in enumerate(text) if char == rarest}
    # A pair begins with a character that it ends not with, so that two of them never overlap.
    pairs = (rarest + char for char in _private() if char not in followers and char != rarest)
    return Markers(next(pairs), next(pairs))


def _private() -> chain[str]:
    return map(chr, chain(*_PRIVATE))  # type: ignore[return-value]
