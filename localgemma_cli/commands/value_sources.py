"""Where an option's value comes from, so that an error names the right place."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.option_spec import variable_of

_OPTION = re.compile(r"--([a-z][a-z-]+)")
_REMOVE = re.compile(r"Remove --([a-z][a-z-]+)")


@dataclass(frozen=True)
class ValueSources:
    """The command line, the environment, and files such as config.toml, the strongest first.

    `files` holds their values by key; `flags` an option's spellings by its key: `top-p`.
    """

    words: Sequence[str]
    environ: Mapping[str, str]
    files: Sequence[tuple[Path, Mapping[str, object]]]
    flags: Mapping[str, Sequence[str]]

    def name_places(self, error: LocalGemmaError) -> None:
        """Replace, in an error, each option that was not typed by the variable or the file that sets it."""
        message = _OPTION.sub(lambda found: self.place(found[1]) or found[0], error.message)
        hint = _REMOVE.sub(lambda found: self._removal(found[1]) or found[0], error.hint)
        if message == error.message and (place := self._place_of_quoted(message)):
            hint = f"{hint} It is set by {place}."
        error.message, error.hint = message, hint

    def place(self, key: str) -> str | None:
        """`LOCALGEMMA_TOP_P` or `top-p in FILE`; None for an option that was typed or is not set."""
        if key not in self.flags or self.is_typed(key):
            return None
        if self.environ.get(variable_of(key)):
            return variable_of(key)
        return next((f"{key} in {path}" for path, values in self.files if key in values), None)

    def is_typed(self, key: str) -> bool:
        end = self.words.index("--") if "--" in self.words else len(self.words)
        return any(
            word == flag or word.startswith(f"{flag}=" if flag.startswith("--") else flag)
            for word in self.words[:end]
            for flag in self.flags[key]
        )

    def _removal(self, key: str) -> str | None:
        place = self.place(key)
        return f"Unset {place}" if place == variable_of(key) else place and f"Remove {place}"

    def _place_of_quoted(self, message: str) -> str | None:
        """The place of the option, not typed, whose value the message quotes."""
        for key in self.flags:
            in_files = (values[key] for _, values in self.files if key in values)
            value = self.environ.get(variable_of(key)) or next(in_files, None)
            if value and repr(value) in message and (place := self.place(key)):
                return place
        return None
