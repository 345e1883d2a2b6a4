"""The model that a name from elsewhere or a typo means, and the names that `--model` accepts."""

import difflib
import os
import re
from collections.abc import Iterable

from localgemma_cli.environment import hub_cache
from localgemma_cli.models.catalog import MODEL_NAMES, catalogue
from localgemma_cli.models.hub.gguf_cache import list_cached_ggufs
from localgemma_cli.models.own_models import own_models

_TAIL = re.compile(r"(-(it|instruct|chat|text|latest|pt|fp16|bf16|q\d[\w-]*|qat|gguf|awq))+$")
_SIZE = re.compile(r"e?\d+[bm]")


def nearest_model(name: str, others: Iterable[str] = ()) -> str | None:
    """The model that `gemma2:9b`, `gemma-2-9b-it`, `9B` or a typo probably means."""
    names = (*MODEL_NAMES, *others)
    by_lower = {each.lower(): each for each in reversed(names)}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    bare = {_bare(facts.id): facts.name for facts in reversed(catalogue())}
    bare |= {each.lower(): each for each in names}
    if "qat" in name.lower() and f"{_bare(name)}-qat" in names:
        return f"{_bare(name)}-qat"
    if _bare(name) in bare:
        return bare[_bare(name)]
    if "/" in name:
        return None
    sized = [each for each in names if each.lower().endswith(f"-{_bare(name)}")]
    if sized or _SIZE.fullmatch(_bare(name)):
        return sized[0] if sized else None
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def _bare(name: str) -> str:
    """Without organisation, family, tuning and format: `2-9b` of google/gemma-2-9b-it."""
    last = name.lower().rsplit("/", 1)[-1]
    plain = re.sub(r"[\s:_.-]+", "-", last.replace("gemma", "", 1)).strip("-")
    return _TAIL.sub("", plain)


def models_on_disk() -> list[str]:
    """The hub ids in the hub's cache, complete or partial."""
    folders = sorted(hub_cache(os.environ).glob("models--*--*"))
    return ["/".join(each.name.split("--", 2)[1:]) for each in folders if each.is_dir()]


def selectable_models() -> list[str]:
    """The names that `--model` accepts: built-in, from models.toml, and hub ids and GGUF models on disk."""
    return list(dict.fromkeys([*MODEL_NAMES, *own_models(), *names_on_disk()]))


def names_on_disk() -> list[str]:
    """The names of hub models on disk: `REPO:QUANT` for each GGUF model of a repository, else its hub id."""
    names: list[str] = []
    for repository in models_on_disk():
        names += [each.name.id for each in list_cached_ggufs(repository)] or [repository]
    return names
