"""The key of a kept model: calls with the same key get the same answers from it as from a load of their own.

The key has what a call asks for. That the files behind it are still the same is checked by the process that
has read them.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma_cli import __version__
from localgemma_cli.command_options import SPECS
from localgemma_cli.environment import config_folder, expand_home, hub_cache
from localgemma_cli.errors import UsageError

if TYPE_CHECKING:
    from localgemma_cli.options import Options

PACKAGE = Path(__file__).parents[1]
_NO_PART = ("keep_alive", "offline")  # local options that the loaded model does not depend on
_PATHS = ("model", "adapter", "assistant", "template")  # options that may name a file or a folder
# Variables that PyTorch, its libraries and llama.cpp read.
_VARIABLES = re.compile(r"(OMP|MKL|KMP|CUDA|NVIDIA|PYTORCH|GGML|LLAMA)_.+")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 365 * 86400  # seconds


def kept_key(options: "Options", places: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """A hash of all that decides which model is loaded, and how; `places`: where each value comes from."""
    names = [name for name, spec in SPECS.items() if spec.local_only and name not in _NO_PART]
    asked = {name: getattr(options, name) for name in (*names, "model")}
    parts = {
        "program": [__version__, str(PACKAGE), sys.executable, sys.version],
        "folders": [str(config_folder()), str(hub_cache(environ))],
        "variables": sorted(pair for pair in environ.items() if _VARIABLES.fullmatch(pair[0])),
        "options": asked,
        "paths": [_real_path(asked[name]) for name in _PATHS],
        # A plan refuses some options of the command line that it ignores elsewhere; not the model.
        "typed": sorted(name for name in asked if name != "model" and places.get(name) == "COMMANDLINE"),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _real_path(name: str | None) -> str | None:
    path = expand_home(name) if name else None
    return os.path.realpath(path) if path and os.path.exists(path) else None


def parse_keep_alive(text: str | None) -> float:
    """Seconds of `10m`, `90s`, `2h`, `1d` or a number of seconds; 0 for `0`, `off` or None."""
    if text is None or text == "off":
        return 0
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", text.strip().lower())
    seconds = float(match[1]) * _UNITS[match[2]] if match else _LONGEST + 1
    if seconds > _LONGEST:
        raise UsageError(
            f"--keep-alive must be a time up to 365d (got {text}).", "Write it like 10m, 90s or 2h, or off."
        )
    return seconds
