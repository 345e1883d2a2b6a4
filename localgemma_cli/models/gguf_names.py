"""Names of GGUF models in a repository: `REPO:QUANT`, `REPO:FILE.gguf`, and which file such a name means.

The rules are those of llama.cpp's -hf (common/download.cpp), except that an ambiguous name is an error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from localgemma_cli.errors import NotFoundError
from localgemma_cli.units import format_bytes

_NAME = re.compile(r"(?P<repository>\w[\w.-]{0,95}/[\w.-]{1,96}):(?P<wanted>[\w+][\w.+ /-]{0,250})")
_HOST = re.compile(r"(https://)?(hf\.co|huggingface\.co)/")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<piece>\d{5})-of-(?P<pieces>\d{5})", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"(?:.*?[-._/])?(?P<word>(?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|NVFP4|BF16|FP?16|FP?32))", re.IGNORECASE
)
_COMPANIONS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # they belong to a model
_DEFAULTS = ("Q4_K_M", "Q8_0")
_ENDING = ".gguf"


@dataclass(frozen=True)
class GgufName:
    """A repository, and the quantization or the file that is wanted of it; None for its default."""

    repository: str
    wanted: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether the name is that of a file, and not of a quantization."""
        return self.wanted is not None and self.wanted.lower().endswith(_ENDING)

    @property
    def id(self) -> str:
        return f"{self.repository}:{self.wanted}" if self.wanted else self.repository


@dataclass(frozen=True)
class GgufModel:
    """One model: a file, or the pieces of a split one in their order; `size` of all of them in bytes."""

    files: tuple[str, ...]
    pieces: int
    size: int

    @property
    def is_complete(self) -> bool:
        return len(self.files) == self.pieces

    @property
    def stem(self) -> str:
        """The file's name without its ending and the number of its piece."""
        return _stem_of(self.files[0])[0]

    @property
    def quantization(self) -> str | None:
        """The last part of the name, if it is a format: `Q4_K_M` of gemma-2-2b-it-Q4_K_M.gguf."""
        found = _QUANTIZATION.fullmatch(self.stem)
        return found["word"].upper() if found else None


def without_host(name: str) -> str:
    """The hub id in `hf.co/REPO:QUANT`, as Ollama spells it, or in the address of a model's page."""
    return _HOST.sub("", name, count=1) if _HOST.match(name) else name


def parse_gguf_name(name: str) -> GgufName | None:
    """The parts of `REPO:QUANT` or `REPO:FILE.gguf`; None for any other name, such as a path."""
    found = _NAME.fullmatch(without_host(name))
    if found is None or ".." in found["wanted"] or "//" in found["wanted"]:
        return None
    return GgufName(found["repository"], None if found["wanted"] == "latest" else found["wanted"])


def gguf_name(id: str) -> GgufName:
    """The name of a GGUF model by the id in its facts: `REPO:QUANT`, or a repository with one model."""
    return parse_gguf_name(id) or GgufName(id)


def gguf_models(sizes: Mapping[str, int]) -> list[GgufModel]:
    """The models among files with these sizes, by name; files that only belong to a model are left out."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(sizes):
        if is_model_file(name):
            groups.setdefault(_stem_of(name), []).append(name)
    return [
        GgufModel(tuple(files), pieces, sum(sizes[name] for name in files))
        for (_, pieces), files in groups.items()
    ]


def is_model_file(name: str) -> bool:
    last = name.rpartition("/")[2].lower()
    return last.endswith(_ENDING) and not any(each in last for each in _COMPANIONS)


def choose_gguf(name: GgufName, models: Sequence[GgufModel], *, has_others: bool = False) -> GgufModel:
    """The model that `name` means; NotFoundError lists what there is.

    Without a wanted one it is the only model, else Q4_K_M, else Q8_0. `has_others`: the repository has
    weights in another format.
    """
    if not models:
        raise NotFoundError(
            f"{name.repository} has no GGUF files.",
            f"Use its other weights: -m {name.repository}"
            if has_others
            else "Use another repository; the names of those with GGUF files often end in -GGUF.",
        )
    found = _matching(name.wanted, models) if name.wanted else _default(models)
    if len(found) != 1:
        listed = list_words(name.repository, found or models)
        raise NotFoundError(f"{name.repository} {_problem(name, found)}.", f"Choose one of: {listed}.")
    if not found[0].is_complete:
        raise NotFoundError(
            f"{name.repository}:{found[0].files[0]} is one of {found[0].pieces} pieces,"
            f" of which {name.repository} has {len(found[0].files)}.",
            "Use another file or --revision.",
        )
    return found[0]


def _problem(name: GgufName, found: Sequence[GgufModel]) -> str:
    if name.wanted is None:
        return f"has several GGUF files, but not exactly one {' or '.join(_DEFAULTS)}, which is the default"
    if found:
        return f"has {len(found)} GGUF files that match {name.wanted}"
    if name.is_file and not is_model_file(name.wanted):
        return f"cannot be run from {name.wanted}, which belongs to a model but is not one"
    return f"has no GGUF file {name.wanted}"


def describe_default(asked: GgufName, model: GgufModel, models: Sequence[GgufModel]) -> str:
    """Which model was chosen, and the others; empty if the user named it or there is only one."""
    others = [each for each in models if each != model]
    if asked.wanted or not others:
        return ""
    return (
        f"{asked.repository} has {len(models)} GGUF models; the default is {short_name(model, models)}."
        f" Others: {list_words(asked.repository, others)}."
    )


def list_words(repository: str, models: Sequence[GgufModel]) -> str:
    """The words to type, each with its size: `org/repo:Q4_K_M (2.5 GB), :Q8_0 (4.1 GB)`."""
    words = [f":{short_name(each, models)} ({format_bytes(each.size)})" for each in models]
    return f"{repository}{', '.join(words)}"


def short_name(model: GgufModel, among: Iterable[GgufModel]) -> str:
    """The quantization if it means only this model `among` its repository's, else the file's name."""
    word = model.quantization
    alike = [each for each in among if word and each.quantization == word]
    return word if word and len(alike) <= 1 else model.files[0]


def full_name(name: GgufName, model: GgufModel, among: Iterable[GgufModel]) -> GgufName:
    """The name of the chosen model, by its file where the user named the file."""
    return GgufName(name.repository, model.files[0] if name.is_file else short_name(model, among))


def _stem_of(name: str) -> tuple[str, int]:
    """The name without its ending and the number of its piece, and how many pieces there are."""
    stem = name[: -len(_ENDING)]
    split = _SPLIT.fullmatch(stem)
    return (split["stem"], max(1, int(split["pieces"]))) if split else (stem, 1)


def _default(models: Sequence[GgufModel]) -> list[GgufModel]:
    if len(models) == 1:
        return [models[0]]
    for word in _DEFAULTS:
        if found := [each for each in models if each.quantization == word]:
            return found
    return []


def _matching(wanted: str, models: Sequence[GgufModel]) -> list[GgufModel]:
    """By the file's whole name, else its last part, else by the quantization; upper or lower case."""
    asked = wanted.lower()
    if asked.endswith(_ENDING):
        by_name = [each for each in models if asked in _names(each)]
        return by_name or [
            each for each in models if asked in {name.rpartition("/")[2] for name in _names(each)}
        ]
    word = asked.upper()
    exact = [each for each in models if each.quantization == word]
    return exact or [
        each
        for each in models
        if each.quantization == f"UD-{word}" or each.stem.lower().endswith((f"-{asked}", f"/{asked}"))
    ]


def _names(model: GgufModel) -> set[str]:
    """The names of its files, and of the whole that they are pieces of, in lower case."""
    return {each.lower() for each in (*model.files, f"{model.stem}{_ENDING}")}
