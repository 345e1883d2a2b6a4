"""Completions of values for the shell: models, presets, conversations. Imports nothing heavy."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from localgemma_cli.environment import cache_folder
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.models.catalog import catalogue
from localgemma_cli.models.model_names import names_on_disk, selectable_models
from localgemma_cli.models.own_models import AUTO, own_models
from localgemma_cli.saved_prompts import prompt_names
from localgemma_cli.types import ASSISTANTS, ATTENTIONS, DEVICES, DTYPES, PROMPT_FORMS, QUANTIZATIONS

_MANY = 50  # conversations to offer
_SPECIAL = {"": r"[^\w@%+=:,./-]", '"': r'[\\$`"]', "'": r"(?!)"}  # to bash, inside these quotes


def join_at_colons(environ: MutableMapping[str, str]) -> None:
    """Undo in bash's variables that it splits words at colons, as in `org/repo:Q4_K_M`."""
    words, place = environ.get("COMP_WORDS", "").split("\n"), environ.get("COMP_CWORD", "")
    if ":" not in words or not place.isdecimal():
        return
    joined, typing = words[:1], 0
    for index, word in enumerate(words[1:], start=1):
        if word and ":" in (word, words[index - 1]):
            joined[-1] += word
        else:
            joined.append(word)
        typing = len(joined) - 1 if index <= int(place) else typing
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(joined), str(typing)


def first_word(environ: Mapping[str, str]) -> str | None:
    """The word after the program's name; None while it is still being typed."""
    words = environ.get("COMP_WORDS", environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    place = environ.get("COMP_CWORD", "")
    typing = int(place) < 2 if place.isdecimal() else len(words) < 3
    return None if typing or len(words) < 2 else words[1]


def offer_values(command: Any, path: str = "") -> None:
    """Add completions to the options and arguments of `command` and its subcommands."""
    for name, inner in getattr(command, "commands", {}).items():
        offer_values(inner, f"{path} {name}".strip())
    for param in command.params:
        values = _ARGUMENTS.get((path, param.name)) or _VALUES.get(param.name)
        if values is not None:
            param._custom_shell_complete = _completer(values)


def _completer(values: Callable[[], Iterable[str]]) -> Callable[[Any, Any, str], list[str]]:
    def completions(_context: Any, _param: Any, begun: str) -> list[str]:
        with suppress(LocalGemmaError, OSError):  # the shell cannot show an error in a user's file
            return [_on_the_line(each, begun, os.environ) for each in values() if each.startswith(begun)]
        return []

    return completions


def _on_the_line(value: str, begun: str, environ: Mapping[str, str]) -> str:
    """`value` as bash needs it on a command line; other shells quote completions themselves.

    bash replaces only what follows the last colon of the word that was `begun`.
    """
    if environ.get("_LOCALGEMMA_COMPLETE") != "complete_bash":
        return value
    words, place = environ.get("COMP_WORDS", "").split("\n"), environ.get("COMP_CWORD", "")
    word = words[int(place)] if place.isdecimal() and int(place) < len(words) else ""
    opened = word[:1] if word[:1] in ("'", '"') else ""
    return re.sub(_SPECIAL[opened], r"\\\g<0>", value if opened else value[begun.rfind(":") + 1 :])


def _presets() -> Iterable[str]:
    from localgemma_cli.planning.presets import load_presets

    return load_presets()


def _conversations() -> Iterable[str]:
    from localgemma_cli.sessions.store import Store, default_path

    if not default_path().exists():
        return []
    store = Store(default_path(), replace_damaged=False)  # nobody would see the notice
    try:
        return [each.name or str(each.id) for each in store.summaries(limit=_MANY)]
    finally:
        store.close()


def _sessions() -> Iterable[str]:
    """Only names: --session accepts no numbers."""
    return [each for each in _conversations() if not each.isdecimal()]


def _removable() -> Iterable[str]:
    """Models with files on disk, by their shorter name."""
    downloaded = set(names_on_disk())
    names = {facts.id: facts.name for facts in catalogue()}
    own = [each.name for each in own_models().values() if {each.repository, each.adapter} & downloaded]
    copies = cache_folder() / "weights"
    kept = [each.name[:-13] for each in copies.iterdir()] if copies.is_dir() else []  # NAME-DIGEST
    return dict.fromkeys([*(names.get(each, each) for each in sorted(downloaded)), *own, *kept])


_VALUES: Mapping[str, Callable[[], Iterable[str]]] = {
    "model": selectable_models,
    "preset": _presets,
    "presets": _presets,
    "session": _sessions,
    "template": lambda: (AUTO, *PROMPT_FORMS),
    "assistant": lambda: (*ASSISTANTS, *selectable_models()),
    "device": lambda: DEVICES,
    "dtype": lambda: DTYPES,
    "quantization": lambda: QUANTIZATIONS,
    "attention": lambda: ATTENTIONS,
    "which": _conversations,
    "saved_prompt": prompt_names,
}
_ARGUMENTS: Mapping[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("models pull", "name"): selectable_models,
    ("models rm", "name"): _removable,
    ("prompts show", "name"): prompt_names,
    ("prompts rm", "names"): prompt_names,
}
