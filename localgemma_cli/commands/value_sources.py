"""Which of the three places an option's value is from, so that an error blames the right one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.errors import LocalGemmaError

_OPTION = re.compile(r"--([a-z][a-z-]+)")


@dataclass(frozen=True)
class ValueSources:
    """`flags`: an option's spellings by its name (`top-p`); `config`: what `path` sets, by parameter."""

    words: Sequence[str]
    environ: Mapping[str, str]
    config: Mapping[str, object]
    path: Path
    flags: Mapping[str, Sequence[str]]

    def blame(self, error: LocalGemmaError) -> None:
        """Name the variable or the file in an error that speaks of an option nobody typed."""
        message = _OPTION.sub(lambda found: self._place(found[1]) or found[0], error.message)
        hint = re.sub(r"Leave --([a-z-]+) out", lambda found: self._without(found[1]) or found[0], error.hint)
        if message == error.message and (place := self._place_of_quoted(message)):
            hint = f"{hint} It is set by {place}."
        error.message, error.hint = message, hint

    def _place(self, name: str) -> str | None:
        """None for an option that was typed, or that is set nowhere."""
        if name not in self.flags or self._is_typed(name):
            return None
        if self.environ.get(_variable(name)):
            return _variable(name)
        return f"{name} in {self.path}" if name.replace("-", "_") in self.config else None

    def _without(self, name: str) -> str | None:
        place = self._place(name)
        return f"Unset {place}" if place == _variable(name) else place and f"Remove {place}"

    def _place_of_quoted(self, message: str) -> str | None:
        """Of the option whose value, not typed, the message quotes."""
        for name in self.flags:
            value = self.environ.get(_variable(name)) or self.config.get(name.replace("-", "_"))
            if value and repr(value) in message and (place := self._place(name)):
                return place
        return None

    def _is_typed(self, name: str) -> bool:
        end = self.words.index("--") if "--" in self.words else len(self.words)
        typed = self.words[:end]
        return any(
            word == flag or word.startswith(f"{flag}=" if flag.startswith("--") else flag)
            for word in typed
            for flag in self.flags[name]
        )


def _variable(name: str) -> str:
    return "LOCALGEMMA_" + name.upper().replace("-", "_")
