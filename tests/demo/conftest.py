"""The demo's training code is in the repository only: it is found there beside an installed package."""

from pathlib import Path

import localgemma_cli

localgemma_cli.__path__.append(str(Path(__file__).parents[2] / "localgemma_cli"))
