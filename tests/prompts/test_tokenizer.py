"""The tokenizer reads a folder's files as transformers does: the same ids, names and templates."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import DEMO, demo_tokenizer, own_tokenizer
from transformers import AutoTokenizer

from localgemma_cli.errors import NotFoundError
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

TEXTS = (
    "",
    "What does the memory preset do?",
    "naïve\n\n  two  spaces \t ☂ 東京 😀 ﷺ\u0301 \u2581 <0x41>",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<eos><mask><unused7><new>new word",
)


def require_equal(ours: Tokenizer, reference: Any) -> None:
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert dict(ours.names) == reference.special_tokens_map
    assert ours.vocabulary == reference.get_vocab()
    added = {each.content: each.special for each in reference.added_tokens_decoder.values()}
    assert ours.added_tokens == added
    assert (ours.id_of(ours.bos), ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, tmp_path / name)
    return tmp_path


def config(folder: Path, **changes: object) -> None:
    """Change tokenizer_config.json; a None removes the key."""
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_the_ids_that_transformers_gives_it(text: str) -> None:
    ids = demo_tokenizer().encode(text, add_special_tokens=False, split_special_tokens=True)
    assert own_tokenizer().encode(text) == ids
    assert own_tokenizer().decode(ids) == demo_tokenizer().decode(ids)


def token(content: str, **flags: object) -> dict[str, object]:
    return {"content": content, **flags}


SETTINGS: dict[str, dict[str, object]] = {
    "as it is": {},
    "names left out": {"bos_token": None, "eos_token": None, "pad_token": None, "unk_token": None},
    "a name in an object": {"eos_token": token("<end_of_turn>", __type="AddedToken")},
    "names of its own": {
        "image_token": "<unused3>",
        "extra_special_tokens": {"end_of_turn": "<end_of_turn>"},
    },
    "a new token": {"extra_special_tokens": ["<new>"]},
    "older name of the list": {"extra_special_tokens": None, "additional_special_tokens": ["<new>"]},
    "a token that is special by name only": {"sep_token": "new"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokenizer_config_names_special_tokens(name: str, folder: Path) -> None:
    config(folder, **SETTINGS[name])
    require_equal(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_tokens_are_added_that_the_config_lists_and_tokenizer_json_lacks(folder: Path) -> None:
    listed = {each["id"]: each for each in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]}
    listed = {str(each.pop("id")): each for each in copy.deepcopy(list(listed.values()))}
    listed |= {"2049": token("<new>", special=True, normalized=False), "2048": token("new word")}
    config(folder, added_tokens_decoder=listed)
    ours = load_tokenizer(folder)
    require_equal(ours, AutoTokenizer.from_pretrained(folder))
    assert ours.id_of("new word") == 2048
    assert ours.id_of("<new>") == 2049
    assert ours.decode([2049, 2048]) == "new word"


def test_older_files_add_tokens_and_name_special_ones(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<new>": 2049, "new word": 2048}')
    (folder / "special_tokens_map.json").write_text(
        '{"eos_token": "<new>", "cls_token": {"content": "<bos>"}}'
    )
    ours = load_tokenizer(folder)
    require_equal(ours, AutoTokenizer.from_pretrained(folder))
    assert ours.eos_id == 2049


def test_without_a_config_the_names_are_gemmas(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    require_equal(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_truncation_and_padding_in_the_file_change_no_ids(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    found["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    found["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    path.write_text(json.dumps(found))
    require_equal(load_tokenizer(folder), demo_tokenizer())


def write_templates(folder: Path, files: dict[str, str], stated: object) -> None:
    (folder / "chat_template.jinja").unlink()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    config(folder, chat_template=stated)


TEMPLATES: dict[str, tuple[dict[str, str], object]] = {
    "none": ({}, None),
    "in the config": ({}, "a"),
    "several in the config": ({}, [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]),
    "none of them the default": ({}, [{"name": "rag", "template": "b"}]),
    "a file before the config": ({"chat_template.jinja": "f\r\n"}, "a"),
    "files": ({"chat_template.jinja": "f", "additional_chat_templates/rag.jinja": "g"}, "a"),
    "a further file only": ({"additional_chat_templates/rag.jinja": "g"}, "a"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_are_found_where_transformers_finds_them(name: str, folder: Path) -> None:
    write_templates(folder, *TEMPLATES[name])
    templates = AutoTokenizer.from_pretrained(folder).chat_template
    expected = templates if isinstance(templates, dict) else {"default": templates} if templates else {}
    ours = load_tokenizer(folder)
    assert dict(ours.templates) == expected
    assert ours.template == expected.get("default")


def test_a_folder_without_tokenizer_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match="contains no tokenizer"):
        load_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"only tokenizer\.model"):
        load_tokenizer(folder)
