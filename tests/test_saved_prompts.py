"""The files of saved prompts: names, fields, options, and the TOML that is written."""

import tomllib
from pathlib import Path

import pytest

from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.saved_prompts import (
    FilledPrompt,
    fill_fields,
    format_prompt,
    prompt_names,
    prompt_path,
    read_prompt,
)

KEYS = ("model", "temperature", "top-p", "prompt", "field")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    made = tmp_path / "config" / "prompts"
    made.mkdir(parents=True)
    return made


def filled(text: str, *given: str) -> FilledPrompt:
    (prompt_path("p")).write_text(text, encoding="utf-8")
    found = fill_fields(read_prompt("p", KEYS), given)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "-x", "a\n", "a b", "x" * 65, "a\0", "~", ".."])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="Not a valid name"):
        prompt_path(name)


@pytest.mark.parametrize("name", ["a", "Commit-message_2.v1", "übersetzen", "翻译"])
def test_a_file_is_found_by_its_name(folder: Path, name: str) -> None:
    (folder / f"{name}.toml").write_text('prompt = "x"\n')
    (folder / ".hidden.toml").write_text("")
    assert prompt_path(name).parent == folder
    assert prompt_names() == [name]
    assert read_prompt(name, KEYS).text == "x"


@pytest.mark.parametrize(
    ("text", "given", "words", "prompt"),
    [
        ('prompt = "Say {input} in {lang}"', ("lang=German",), "hi", "Say hi in German"),
        ('prompt = "{a}{a}"\n[fields]\na = "1"', (), "", "11"),
        ('prompt = "{a}"\n[fields]\na = "1"', ("a=2", "a=3=4"), "", "3=4"),
        ('prompt = "Write a message:"', (), "diff", "Write a message:\n\ndiff"),
        ('prompt = "{{a}} {input}"', (), "{b} {{", "{a} {b} {{"),
        ('prompt = "{a} {input}"', ("a={input}",), "x", "{input} x"),
        ('prompt = "{a}|"', ("a=",), "", "|"),
    ],
)
def test_fields_and_input_are_filled(
    folder: Path, text: str, given: tuple[str, ...], words: str, prompt: str
) -> None:
    assert filled(text, *given).with_input(words) == prompt


@pytest.mark.parametrize(
    ("text", "given", "message", "hint"),
    [
        ('prompt = "{a} {b} {c}"', ("b=1",), "needs a value for: a, c.", "Fields: a, b, c."),
        ('prompt = "{a}"', ("b=1",), "has no field 'b'", "Fields: a."),
        ('prompt = "x"', ("b=1",), "has no field 'b'", "no fields"),
        ('prompt = "{a}"', ("a",), r"--field must be NAME=VALUE \(got 'a'\)", "lang=German"),
        ('prompt = "{input}"', ("input=1",), "input cannot be set", "Remove"),
        ('prompt = "{a"', (), r"p\.toml: prompt has a brace", "{{"),
        ("prompt = 1", (), r"p\.toml: prompt must be text", "quotation"),
        ("fields = 1", (), "fields must be a table", "lang"),
        ("[fields]\na = 1", (), "fields must be a table of texts", "lang"),
        ('[fields]\na = "1"', (), r"p\.toml has no field 'a'", "no fields"),
        ("temprature = 1", (), r"p\.toml: unknown option 'temprature'", "temperature"),
        ('field = "a=1"', (), "unknown option 'field'", "temperature"),
        ("model = [1]", (), "model must be text, a number", "0.9"),
        ("model = ", (), "not valid TOML", "line"),
    ],
)
def test_what_is_wrong_is_named(
    folder: Path, text: str, given: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        filled(text, *given)
    assert hint in refused.value.hint


def test_a_missing_prompt_is_not_found_and_the_others_are_named(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="not found: 'x'") as missing:
        read_prompt("x", KEYS)
    assert "localgemma prompts save" in missing.value.hint
    (folder / "y.toml").write_text("")
    with pytest.raises(NotFoundError) as missing:
        read_prompt("x", KEYS)
    assert missing.value.hint == "Saved: y."


def test_without_a_text_there_is_nothing_to_fill(folder: Path) -> None:
    (folder / "role.toml").write_text('model = "demo"\ntop_p = 0.5\n')
    found = read_prompt("role", KEYS)
    assert found.options == {"model": "demo", "top-p": 0.5}
    assert fill_fields(found, []) is None
    assert fill_fields(None, []) is None
    with pytest.raises(UsageError, match="--field needs --prompt"):
        fill_fields(None, ["a=1"])


@pytest.mark.parametrize(
    "text",
    [
        "one line",
        r'{"type": "object"} \d',
        'quotes " and \\ and \t',
        "\x00\x1f\x7f\x85\u2028",
        "two\nlines",
        '"""\n""""""\nends in "',
        "\n\nbegins empty",
        "back\\slash\nat the end\\",
        "tab\tand\rreturn\n\x7f\x00",
        '\n"',
        "emoji 🙂\n{input}",
    ],
)
def test_what_is_written_is_read_again(text: str) -> None:
    written = format_prompt(
        text, {"a key": text, "b": "1"}, {"system": text, "top-p": 0.1, "json": True, "seed": 7}
    )
    assert tomllib.loads(written) == {
        "prompt": text,
        "system": text,
        "top-p": 0.1,
        "json": True,
        "seed": 7,
        "fields": {"a key": text, "b": "1"},
    }
