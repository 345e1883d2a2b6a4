"""Presets: small TOML files, read strictly; the four that ship, and the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, get_args

from localgemma_cli.config import parse_toml, read_toml
from localgemma_cli.documents import shown
from localgemma_cli.environment import config_folder
from localgemma_cli.errors import UsageError
from localgemma_cli.types import (
    Assistant,
    Attention,
    CacheKind,
    CompileMode,
    DeviceKind,
    Dtype,
    OffloadRule,
    Quantization,
    listed,
)

BUILT_IN = ("exact", "speed", "memory", "memory_extreme")
LOSSLESS = ("exact", "speed")  # the two that promise the unquantized model


@dataclass(frozen=True)
class Settings:
    """A preset's word on one device; `native` is bfloat16 where the device has it, else float32.

    `4-bit` is NF4 where the device has a product for it, else int4 where it has one for that. `least` is the
    smaller of a sliding cache and one in 8 bits. `compact`: bfloat16 weights in 12 bits each, without loss,
    where the device has a product for that.
    """

    dtype: Dtype | Literal["native"]
    quantization: Quantization | Literal["4-bit"]
    nested_quantization: bool
    attention: Attention | Literal["auto"]
    cache: CacheKind | Literal["least"]
    compile: CompileMode
    offload: OffloadRule
    assistant: Assistant
    compact: bool


@dataclass(frozen=True)
class Preset:
    name: str
    summary: str
    devices: Mapping[DeviceKind, Settings]


@dataclass(frozen=True)
class _Source:
    """One file as parsed and checked: `common` keys, and each device's own."""

    name: str
    path: str
    summary: str | None
    inherits: str | None
    common: Mapping[str, str | bool]
    devices: Mapping[str, Mapping[str, str | bool]]


_DEVICES: tuple[DeviceKind, ...] = ("cuda", "mps", "cpu")
_ALLOWED: Mapping[str, tuple[str | bool, ...]] = {
    "dtype": ("native", *get_args(Dtype)),
    "quantization": ("4-bit", *get_args(Quantization)),
    "nested_quantization": (True, False),
    "attention": ("auto", *get_args(Attention)),
    "cache": ("least", *get_args(CacheKind)),
    "compile": get_args(CompileMode),
    "offload": get_args(OffloadRule),
    "assistant": get_args(Assistant),
    "compact": (True, False),
}


def load_presets(folder: Path | None = None) -> Mapping[str, Preset]:
    """Every preset by name: the built-in ones, then `folder`'s (by default `presets/` in the config folder).

    A user's preset cannot take a built-in name: `--preset exact` must mean the same on every machine.
    """
    own_folder = config_folder() / "presets" if folder is None else folder
    sources = {name: _read(_built_in(name), name) for name in BUILT_IN}
    for path in sorted(own_folder.glob("*.toml")):
        if path.stem in BUILT_IN:
            raise UsageError(
                f"{path} has the name of a built-in preset.",
                f'Rename the file; `inherits = "{path.stem}"` in it starts from the built-in one.',
            )
        sources[path.stem] = _read(path, path.stem)
    return {name: _resolve(name, sources) for name in sources}


def preset_named(name: str, presets: Mapping[str, Preset]) -> Preset:
    if name not in presets:
        raise UsageError(f"There is no preset {name!r}.", f"Choose one of: {listed(presets)}.")
    return presets[name]


def _built_in(name: str) -> Traversable:
    try:
        folder = files("localgemma_cli.presets")
    except ModuleNotFoundError:  # the source tree itself, run from its root without an editable install
        folder = Path(__file__).parents[2] / "presets"
    return folder / f"{name}.toml"


def _read(path: Traversable, name: str) -> _Source:
    table = _parse(path)
    devices = {key: table.pop(key) for key in _DEVICES if key in table}
    summary, inherits = _text(path, table, "summary"), _text(path, table, "inherits")
    common = {key: _checked(path, key, value) for key, value in table.items()}
    return _Source(
        name,
        str(path),
        summary,
        inherits,
        common,
        {key: _section(path, key, devices[key]) for key in devices},
    )


def _text(path: Traversable, table: dict[str, object], key: str) -> str | None:
    value = table.pop(key, None)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{path}: {key} must be text, not {shown(value)}.", f"Put {key} in quotation marks.")


def _parse(path: Traversable) -> dict[str, object]:
    if isinstance(path, Path):
        return read_toml(path)
    return parse_toml(path.read_text(encoding="utf-8"), str(path))  # ours, in a package that is not unpacked


def _section(path: Traversable, device: str, table: object) -> Mapping[str, str | bool]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {device} must be a table.", f"Write its keys under a line [{device}].")
    return {key: _checked(path, key, value, f"{device}.") for key, value in table.items()}


def _checked(path: Traversable, key: str, value: object, prefix: str = "") -> str | bool:
    if key not in _ALLOWED:
        known = ("summary", "inherits", *_ALLOWED, *_DEVICES) if not prefix else tuple(_ALLOWED)
        raise UsageError(f"{path}: there is no key {prefix}{key}.", f"The keys are: {listed(known)}.")
    for allowed in _ALLOWED[key]:
        if type(value) is type(allowed) and value == allowed:
            return allowed
    words = (str(each).lower() if isinstance(each, bool) else each for each in _ALLOWED[key])
    raise UsageError(f"{path}: {prefix}{key} cannot be {shown(value)}.", f"Choose one of: {listed(words)}.")


def _resolve(name: str, sources: Mapping[str, _Source]) -> Preset:
    """A preset with what it inherits: the nearer file wins, and within a file the device's table."""
    chain = _chain(name, sources)
    summary = next((source.summary for source in chain if source.summary), name)
    return Preset(name, summary, {device: _settings(chain, device) for device in _DEVICES})


def _chain(name: str, sources: Mapping[str, _Source]) -> tuple[_Source, ...]:
    """The preset and its ancestors, nearest first."""
    chain = [sources[name]]
    while (parent := chain[-1].inherits) is not None:
        if parent not in sources:
            raise UsageError(
                f"{chain[-1].path} inherits {shown(parent)}, which does not exist.",
                f"Choose one of: {listed(sources)}.",
            )
        if any(source.name == parent for source in chain):
            names = " → ".join([*(source.name for source in chain), parent])
            raise UsageError(f"{chain[0].path} inherits itself: {names}.", "Remove one `inherits`.")
        chain.append(sources[parent])
    return tuple(chain)


def _settings(chain: Sequence[_Source], device: DeviceKind) -> Settings:
    merged: dict[str, str | bool] = {}
    for source in reversed(chain):
        merged |= source.common
        merged |= source.devices.get(device, {})
    missing = [field.name for field in fields(Settings) if field.name not in merged]
    if missing:
        raise UsageError(
            f"{chain[0].path} says nothing of {listed(missing)}.",
            'Add them, or start from a built-in preset with `inherits = "memory"`.',
        )
    return Settings(**merged)  # type: ignore[arg-type]  # each value was checked against its key's choices
