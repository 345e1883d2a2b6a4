"""A folder to its tokenizer, without torch."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from localgemma_cli.errors import NotFoundError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises NotFoundError where the folder, or the GGUF file, holds no tokenizer that can be read."""
    if folder.is_file():
        return _gguf_tokenizer(folder)
    if not (folder / "tokenizer.json").is_file():  # transformers would make one up, without a vocabulary
        only = (folder / "tokenizer.model").is_file()
        raise NotFoundError(
            f"{folder} holds {'only tokenizer.model, which is not read here' if only else 'no tokenizer'}.",
            "Download the model again, tokenizer.json included.",
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise unloadable("tokenizer", folder, error) from error
    return tokenizer


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from localgemma_cli.backends.local.formats.gguf_model import load_gguf_tokenizer

    try:
        return load_gguf_tokenizer(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise unloadable("tokenizer", path, error) from error


def unloadable(what: str, folder: Path, error: Exception) -> NotFoundError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return NotFoundError(
        f"The {what} in {folder} cannot be loaded: {first_line}",
        "Check the folder, or download the model again; -v shows the whole error.",
    )
