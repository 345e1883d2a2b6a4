"""What libraries raise while they load, as one error that names the file; the small files beside weights."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localgemma_cli.documents import read_bytes, read_object, reason
from localgemma_cli.errors import LocalGemmaError, NotFoundError
from localgemma_cli.models.fields import Fields
from localgemma_cli.units import format_bytes

_OBJECTS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
)
_SMALL, _TOKENIZER = (
    16 << 20,
    256 << 20,
)  # bytes; Gemma 3's tokenizer_config.json has 1.2 MB, its tokenizer 34
_TEMPLATE = 1 << 20
_LONGEST = 200  # characters of what a library says
_HELD = 1 << 20  # bytes


@contextmanager
def loading(what: str, path: Path) -> Iterator[None]:
    """Whatever a library raises within, for any content of the files in `path`, is a NotFoundError.

    Libraries check next to nothing: a wrong type is found wherever it is used first, as any exception there
    is, an AssertionError, a RecursionError or, of the tokenizers library, a panic that is no Exception.
    """
    try:
        yield
    except (LocalGemmaError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise unloadable(what, path, error) from error


def unloadable(what: str, path: Path, error: BaseException) -> NotFoundError:
    lines = str(error).strip().splitlines() or [""]
    said = lines[0].strip().rstrip(".:")[:_LONGEST] or type(error).__name__
    if isinstance(error, KeyError | AttributeError | AssertionError | IndexError):  # a bare name, else
        said = f"{type(error).__name__}: {said}" if str(error) else type(error).__name__
    return NotFoundError(
        f"The {what} in {path} cannot be loaded: {said}.",
        "Check the folder, or download the model again; -v shows the whole error.",
    )


def require_objects(folder: Path) -> None:
    """NotFoundError naming file and key where a small JSON file is none, or the tokenizer is huge."""
    for name in _OBJECTS:
        if os.path.lexists(folder / name):
            _require_sense(Fields(_object(folder / name), str(folder / name)))
    for path in (folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")):
        if os.path.lexists(path):
            _require_text(path)
    size = (folder / "tokenizer.json").stat().st_size
    if size > _TOKENIZER:
        raise _unreadable(
            folder / "tokenizer.json", ValueError(f"it is larger than {format_bytes(_TOKENIZER)}")
        )


def _require_text(path: Path) -> None:
    try:
        read_bytes(path, _TEMPLATE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, ValueError(f"byte {error.start} is not UTF-8")) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _object(path: Path) -> dict[str, object]:
    try:
        return read_object(path, _SMALL)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> NotFoundError:
    return NotFoundError(f"{path} cannot be read: {reason(error)}.", "Download the model again.")


def _require_sense(own: Fields) -> None:
    template = own.values.get("chat_template")
    if template is not None and not isinstance(template, str | dict | list):
        raise own.fault("chat_template", "a text, or several by name")
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = own.values.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if value is not None and not (isinstance(content, str) and content):
            raise own.fault(key, "a token's text")
    own.require_ids(("bos_token_id", "eos_token_id", "pad_token_id"), 1 << 31)


@contextmanager
def panics_held() -> Iterator[None]:
    """A panic in Rust writes to descriptor 2 by itself: that is dropped, what else comes is passed on."""
    try:
        before = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    panicked = False
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            panicked = not isinstance(error, Exception)
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            if not panicked and (said := held.read(_HELD)):
                os.write(2, said)
