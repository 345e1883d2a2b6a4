"""A folder to its tokenizer, without torch."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.load_errors import loading, panics_held, require_objects

_PROBE = (
    "Hello, wörld 12\n  <eos>\t東京 😀 ﷺ\u0301"  # of several scripts: what fails for some text fails for this
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises NotFoundError where the folder, or the GGUF file, holds no tokenizer that can be read."""
    if folder.is_file():
        from localgemma_cli.backends.pytorch.loading.gguf import load_gguf_tokenizer

        with loading("tokenizer", folder), panics_held():
            return _proved(load_gguf_tokenizer(folder))
    if not (folder / "tokenizer.json").is_file():  # transformers would make one up, without a vocabulary
        only = (folder / "tokenizer.model").is_file()
        raise NotFoundError(
            f"{folder} holds {'only tokenizer.model, which is not read here' if only else 'no tokenizer'}.",
            "Download the model again, tokenizer.json included.",
        )
    require_objects(folder)
    with loading("tokenizer", folder), panics_held():
        return _proved(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def _proved(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same, once it has encoded and decoded: some are built whole and cannot."""
    ids = tokenizer.encode(_PROBE, add_special_tokens=False, split_special_tokens=True, verbose=False)
    tokenizer.backend_tokenizer.decode(ids)
    if not ids:
        raise ValueError("it makes no tokens of text")
    return tokenizer
