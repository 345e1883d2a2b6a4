"""The small files beside tokenizer.json: names of special tokens, added tokens and chat templates.

They are read as transformers' AutoTokenizer reads them (5.23, tokenization_utils_base.py), each within a size
limit; what is malformed is refused by file and key.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from localgemma_cli.documents import failure_reason, read_bounded_bytes, read_json_object
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.json_fields import JsonFields
from localgemma_cli.prompts.tokenizer import TokenizerSettings
from localgemma_cli.units import format_bytes

_CONFIG, _SPECIAL, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# The last two are read by other code, and are checked here because the tokenizer is loaded first.
_OBJECTS = (_CONFIG, _SPECIAL, _ADDED, "generation_config.json", "chat_template.json")
_OBJECT_LIMIT, _TEMPLATE_LIMIT = 16 << 20, 1 << 20  # bytes; Gemma 3's tokenizer_config.json has 1.2 MB
_TOKENIZER_LIMIT = 256 << 20  # bytes; Gemma 3's tokenizer.json has 34 MB
_MAX_ID = 1 << 31
_FIELDS = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")


def read_tokenizer_settings(folder: Path) -> TokenizerSettings:
    """Read the files in `folder`; NotFoundError, with file and key, if one is malformed or too large."""
    size = (folder / "tokenizer.json").stat().st_size
    if size > _TOKENIZER_LIMIT:
        too_large = ValueError(f"it is larger than {format_bytes(_TOKENIZER_LIMIT)}")
        raise _unreadable(folder / "tokenizer.json", too_large)
    objects = {name: _read_checked(folder / name) for name in _OBJECTS}
    config = objects[_CONFIG]
    if "added_tokens_decoder" not in config:  # as older files have it
        config = {**config, **objects[_SPECIAL]}
    names = _names(config)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    extras = [_special_token(each) for each in extra] if isinstance(extra, list) else []
    if "added_tokens_decoder" in config:
        added = _listed_tokens(JsonFields(config, str(folder / _CONFIG)))
    else:
        special = {*names.values(), *(each.content for each in extras)}
        added = _older_tokens(JsonFields(objects[_ADDED], str(folder / _ADDED)), special)
    return TokenizerSettings(names, (*added, *extras), _templates(folder, config))


def _names(config: Mapping[str, object]) -> dict[str, str | None]:
    """The special tokens by attribute: every `*_token`, and the tokens that two further objects name."""
    found = {key: value for key, value in config.items() if key.endswith("_token")}
    for key in ("model_specific_special_tokens", "extra_special_tokens"):
        named = config.get(key)
        found |= named if isinstance(named, dict) else {}
    names = {key: _content(value) for key, value in found.items()}
    return {key: name for key, name in names.items() if name or found[key] is None}


def _content(value: object) -> str | None:
    """The text of a token, given alone or in an object with its flags."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _special_token(value: object) -> AddedToken:
    """Raises TypeError for anything but a token."""
    token: dict[str, Any] = value if isinstance(value, dict) else {"content": value}
    return AddedToken(**{"normalized": False, **_fields(token), "special": True})


def _fields(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: token[key] for key in _FIELDS if key in token}


def _listed_tokens(config: JsonFields) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`, an object of tokens by id."""
    listed = config.part("added_tokens_decoder") or JsonFields({}, "")
    tokens = {int(key): listed.part(key) for key in listed.values}
    return [AddedToken(**_fields(token.values)) for _, token in sorted(tokens.items()) if token is not None]


def _older_tokens(ids: JsonFields, special: set[str | None]) -> list[AddedToken]:
    """The tokens of added_tokens.json, an object of ids by token."""
    order = {token: ids.whole(token, 0, _MAX_ID) for token in ids.values}
    return [
        AddedToken(token, normalized=token not in special, special=token in special)
        for token in sorted(order, key=order.__getitem__)
    ]


def _templates(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """By name; templates in files replace those in tokenizer_config.json."""
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if os.path.lexists(folder / "chat_template.jinja"):
        files = {"default": folder / "chat_template.jinja", **files}
    if files:
        return {name: _read_template(path) for name, path in files.items()}
    stated = config.get("chat_template")
    if isinstance(stated, list):
        stated = {each["name"]: each["template"] for each in stated}
    if isinstance(stated, dict):
        return {str(name): str(template) for name, template in stated.items()}
    return {"default": stated} if isinstance(stated, str) else {}


def _read_template(path: Path) -> str:
    """With line ends as Python's text files have them."""
    try:
        text = read_bounded_bytes(path, _TEMPLATE_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, ValueError(f"byte {error.start} is not UTF-8")) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_checked(path: Path) -> dict[str, object]:
    """The object in a file; {} without the file."""
    if not os.path.lexists(path):
        return {}
    try:
        found = read_json_object(path, _OBJECT_LIMIT)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    _require_known_types(JsonFields(found, str(path)))
    return found


def _require_known_types(config: JsonFields) -> None:
    template = config.values.get("chat_template")
    if template is not None and not isinstance(template, str | dict | list):
        raise config.fault("chat_template", "text, or a list of named templates")
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.values.get(key)
        if value is not None and not _content(value):
            raise config.fault(key, "the text of a token")
    config.require_text("tokenizer_class")
    config.require_ids(("bos_token_id", "eos_token_id", "pad_token_id"), _MAX_ID)


def _unreadable(path: Path, error: Exception) -> NotFoundError:
    return NotFoundError(f"Cannot read {path}: {failure_reason(error)}.", "Download the model again.")
