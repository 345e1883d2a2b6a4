"""The tokenizer of a model's folder or GGUF file."""

from pathlib import Path

import tokenizers

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.load_errors import loading, suppress_panics
from localgemma_cli.prompts.gguf_tokenizer import read_gguf_tokenizer
from localgemma_cli.prompts.partial_tokenizer import read_partial_tokenizer
from localgemma_cli.prompts.tokenizer import Tokenizer, build_tokenizer
from localgemma_cli.prompts.tokenizer_files import read_tokenizer_settings

_LARGE = 4_000_000  # bytes of tokenizer.json that take a noticeable time to build
# Several scripts: a tokenizer that fails on some text fails on this one.
_PROBE = "Hello, wörld 12\n  <eos>\t東京 😀 ﷺ\u0301"


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer.

    NotFoundError where the folder or GGUF file has no tokenizer, or it cannot be read.
    """
    with loading("tokenizer", path), suppress_panics():
        tokenizer = read_gguf_tokenizer(path) if path.is_file() else _read_folder(path)
        _require_usable(tokenizer)
        return tokenizer


def _read_folder(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        only = (folder / "tokenizer.model").is_file()
        found = "only tokenizer.model, which is not supported" if only else "no tokenizer"
        raise NotFoundError(
            f"{folder} contains {found}.", "Download the model again, including tokenizer.json."
        )
    settings = read_tokenizer_settings(folder)
    if file.stat().st_size > _LARGE:
        partial = read_partial_tokenizer(file.read_bytes(), settings)
        if partial is not None:
            return partial
    return build_tokenizer(tokenizers.Tokenizer.from_file(str(file)), settings)


def _require_usable(tokenizer: Tokenizer) -> None:
    """One round trip: some files load without an error and fail at the first use."""
    ids = tokenizer.encode(_PROBE)
    tokenizer.decode(ids)
    if not ids:
        raise ValueError("it produces no tokens")
