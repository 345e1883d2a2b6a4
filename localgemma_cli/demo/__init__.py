"""The bundled demo: a very small Gemma 2 that knows this program and nothing else."""

from pathlib import Path


def model_folder() -> Path:
    """The folder that `--model demo` loads."""
    return Path(__file__).parent / "model"
