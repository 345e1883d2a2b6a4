"""Read and validate presets: the built-in TOML files and the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, get_args

from localgemma_cli.config import parse_toml, read_toml
from localgemma_cli.documents import format_value
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
)

BUILT_IN = ("exact", "speed", "memory", "memory_extreme")
LOSSLESS = ("exact", "speed")  # presets that never quantize


@dataclass(frozen=True)
class DevicePreset:
    """What a preset asks for on one kind of device.

    `native`: bfloat16 if the device computes it, else float32. `4-bit`: int4 on a CPU, else NF4. `least`: the
    smaller of a sliding and an 8-bit cache.
    `compact`: bfloat16 weights packed losslessly into 12 bits each, if the device has a kernel for them.
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
    devices: Mapping[DeviceKind, DevicePreset]


Presets = Mapping[str, Preset]


@dataclass(frozen=True)
class _Source:
    """One validated file: keys for all devices in `common`, those of its device tables in `devices`."""

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


def load_presets(folder: Path | None = None) -> Presets:
    """All presets by name: the built-in ones, then those in `folder` (default: the user's own).

    Raises UsageError for an invalid file, and for one with a built-in preset's name: `--preset exact` must
    mean the same on every machine.
    """
    own_folder = config_folder() / "presets" if folder is None else folder
    sources = {name: _read_source(_find_built_in(name), name) for name in BUILT_IN}
    for path in sorted(own_folder.glob("*.toml")):
        if path.stem in BUILT_IN:
            raise UsageError(
                f"{path} has the name of a built-in preset.",
                f'Rename the file. To start from the built-in preset, write: inherits = "{path.stem}"',
            )
        sources[path.stem] = _read_source(path, path.stem)
    return {name: _resolve_preset(name, sources) for name in sources}


def find_preset(name: str, presets: Presets) -> Preset:
    if name not in presets:
        raise UsageError(f"Unknown preset: {format_value(name)}.", f"Choose one of: {', '.join(presets)}.")
    return presets[name]


def _find_built_in(name: str) -> Traversable:
    try:
        folder = files("localgemma_cli.presets")
    except ModuleNotFoundError:  # run from the source tree without being installed
        folder = Path(__file__).parents[2] / "presets"
    return folder / f"{name}.toml"


def _read_source(path: Traversable, name: str) -> _Source:
    table = _parse_file(path)
    devices = {key: table.pop(key) for key in _DEVICES if key in table}
    summary, inherits = _pop_text(path, table, "summary"), _pop_text(path, table, "inherits")
    common = {key: _parse_value(path, key, value) for key, value in table.items()}
    return _Source(
        name,
        str(path),
        summary,
        inherits,
        common,
        {key: _read_section(path, key, devices[key]) for key in devices},
    )


def _pop_text(path: Traversable, table: dict[str, object], key: str) -> str | None:
    value = table.pop(key, None)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(
        f"{path}: {key} must be text (got {format_value(value)}).",
        f"Put the value of {key} in quotation marks.",
    )


def _parse_file(path: Traversable) -> dict[str, object]:
    if isinstance(path, Path):
        return read_toml(path)
    return parse_toml(path.read_text(encoding="utf-8"), str(path))  # a built-in preset in a zipped package


def _read_section(path: Traversable, device: str, table: object) -> Mapping[str, str | bool]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {device} must be a table.", f"Write its keys below a line [{device}].")
    return {key: _parse_value(path, key, value, f"{device}.") for key, value in table.items()}


def _parse_value(path: Traversable, key: str, value: object, prefix: str = "") -> str | bool:
    if key not in _ALLOWED:
        known = ("summary", "inherits", *_ALLOWED, *_DEVICES) if not prefix else tuple(_ALLOWED)
        raise UsageError(
            f"{path}: unknown key {format_value(prefix + key)}.", f"Allowed keys: {', '.join(known)}."
        )
    for allowed in _ALLOWED[key]:
        if type(value) is type(allowed) and value == allowed:
            return allowed
    words = (str(each).lower() if isinstance(each, bool) else each for each in _ALLOWED[key])
    raise UsageError(
        f"{path}: {prefix}{key} cannot be {format_value(value)}.", f"Choose one of: {', '.join(words)}."
    )


def _resolve_preset(name: str, sources: Mapping[str, _Source]) -> Preset:
    """The preset merged with those it inherits.

    A file overrides the one it inherits, and in a file the device's table overrides the common keys.
    """
    chain = _inheritance_chain(name, sources)
    summary = next((source.summary for source in chain if source.summary), name)
    return Preset(name, summary, {device: _merge_settings(chain, device) for device in _DEVICES})


def _inheritance_chain(name: str, sources: Mapping[str, _Source]) -> tuple[_Source, ...]:
    """The preset's file and those it inherits, nearest first."""
    chain = [sources[name]]
    while (parent := chain[-1].inherits) is not None:
        if parent not in sources:
            raise UsageError(
                f"{chain[-1].path}: inherits names an unknown preset: {format_value(parent)}.",
                f"Choose one of: {', '.join(sources)}.",
            )
        if any(source.name == parent for source in chain):
            names = " → ".join([*(source.name for source in chain), parent])
            raise UsageError(f"{chain[0].path} inherits itself: {names}.", "Remove one of the inherits keys.")
        chain.append(sources[parent])
    return tuple(chain)


def _merge_settings(chain: Sequence[_Source], device: DeviceKind) -> DevicePreset:
    merged: dict[str, str | bool] = {}
    for source in reversed(chain):
        merged |= source.common
        merged |= source.devices.get(device, {})
    missing = [field.name for field in fields(DevicePreset) if field.name not in merged]
    if missing:
        raise UsageError(
            f"{chain[0].path}: missing keys: {', '.join(missing)}.",
            'Add them, or inherit them from a built-in preset: inherits = "memory"',
        )
    return DevicePreset(**merged)  # type: ignore[arg-type]  # each value was validated
