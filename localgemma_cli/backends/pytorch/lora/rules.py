"""Which modules an adapter_config.json selects, with their rank and alpha, by peft's rules.

Patterns come with the adapter and are not trusted: matching has a time limit, which Python's `re` lacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import regex  # type: ignore[import-untyped]  # has a time limit; transformers requires it too

_SECONDS = 1.0
_LONGEST = 20_000  # characters of a pattern


@dataclass(frozen=True)
class Rules:
    """The rules of a validated config. Methods raise ValueError for a pattern that is invalid or too slow.

    `usual`: the modules that peft adapts in this kind of model where the config names none.
    """

    config: Mapping[str, object]
    usual: Sequence[str]

    def adapts(self, name: str, *, is_linear: bool, is_head: bool) -> bool:
        """Whether the module has low-rank matrices; peft's `check_target_module_exists` and "all-linear"."""
        if self._excludes(name):
            return False
        targets = self.config.get("target_modules")
        if targets is None:
            targets = self.usual
        if isinstance(targets, str):
            if targets.lower() == "all-linear":
                return is_linear and not is_head
            return _matches(targets, name)
        names = _strings(targets)
        return name in names or (_ends_in(name, names) and self._in_layers(name))

    def keeps(self, name: str) -> bool:
        """Whether the adapter replaces the whole module."""
        return name.endswith(tuple(_strings(self.config.get("modules_to_save"))))

    def rank(self, name: str) -> int:
        return int(self._by_pattern("rank_pattern", name, self.config.get("r")))

    def alpha(self, name: str) -> float:
        return self._by_pattern("alpha_pattern", name, self.config.get("lora_alpha", 8))

    def tokens(self, name: str) -> Sequence[int] | None:
        """The tokens whose rows in the module's matrix the adapter replaces; None where not given."""
        found = self.config.get("trainable_token_indices")
        if isinstance(found, Mapping):
            found = next((rows for key, rows in found.items() if name.endswith(str(key))), None)
        elif not name.endswith("embed_tokens"):
            found = None
        return found if isinstance(found, list) else None

    def _excludes(self, name: str) -> bool:
        excluded = self.config.get("exclude_modules")
        if isinstance(excluded, str) and excluded:
            if _matches(excluded, name):
                return True
        elif name in _strings(excluded) or _ends_in(name, _strings(excluded)):
            return True
        kept = _strings(self.config.get("modules_to_save"))
        return any(_matches(rf"(.*\.)?(?:{each})(\..*)?", name) for each in kept)

    def _in_layers(self, name: str) -> bool:
        wanted = self.config.get("layers_to_transform")
        if wanted is None or wanted == []:
            return True
        pattern = self.config.get("layers_pattern")
        patterns = [pattern] if isinstance(pattern, str) and pattern else _strings(pattern)
        for each in [rf"(?:.*?\.)?(?:{one})" for one in patterns] or [r".*?\.[^.]*"]:
            if found := _search(rf"{each}\.(?P<index>\d+)\..*", name):
                index = int(found["index"])
                return index in wanted if isinstance(wanted, list) else index == wanted
        return False

    def _by_pattern(self, key: str, name: str, usual: object) -> float:
        patterns = self.config.get(key)
        for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
            if _matches(rf"(.*\.)?(?:{pattern})", name):
                return _require_number(value, key)
        return _require_number(usual, key)


def _require_number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number")
    return value


def _strings(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else []


def _ends_in(name: str, parts: Sequence[str]) -> bool:
    return name.endswith(tuple(f".{part}" for part in parts))


def _matches(pattern: str, name: str) -> bool:
    return _search(pattern, name) is not None


def _search(pattern: str, name: str) -> "regex.Match[str] | None":
    try:
        return _compiled(pattern).fullmatch(name, timeout=_SECONDS)
    except TimeoutError:
        raise ValueError(f"the pattern {pattern[:60]!r} takes too long") from None


@cache
def _compiled(pattern: str) -> "regex.Pattern[str]":
    if len(pattern) > _LONGEST:
        raise ValueError(f"the pattern {pattern[:60]!r}… is too long")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern {pattern[:60]!r} is invalid ({error})") from None
