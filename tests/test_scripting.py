"""docs/scripting.md: its examples print what the page says, word for word."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.console import Example, examples_of, installed_command, is_as_expected, run_block
from support.program import Program

PAGE = Path(__file__).parents[1] / "docs" / "scripting.md"
BLOCKS = examples_of(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Someone who types the whole page in one folder, with the demo model."""
    program = Program(tmp_path_factory.mktemp("scripting"))
    with installed_command(program):
        yield program


@pytest.mark.parametrize("examples", BLOCKS, ids=lambda examples: examples[0].command[:60])
def test_an_example_prints_what_the_page_says(reader: Program, examples: list[Example]) -> None:
    printed = run_block(reader, examples)
    assert len(printed) == len(examples), printed
    for example, text in zip(examples, printed, strict=True):
        assert is_as_expected(example.expected, text), f"$ {example.command}\n{text}"


def test_a_page_is_cut_into_commands_and_their_output() -> None:
    page = (
        "```console\n$ echo a \\\n> b\na b\n$ true\n```\n\n```sh\n$ no\n```\n```console\n$ one\n1\n\n2\n```\n"
    )
    assert examples_of(page) == [
        [Example("echo a \\\nb", "a b"), Example("true", "")],
        [Example("one", "1\n\n2")],
    ]


def test_an_example_s_shell_keeps_variables_and_exit_codes(reader: Program) -> None:
    examples = [
        Example("x=1; false", ""),
        Example('echo "$? $x"; echo 2 >&2', ""),
        Example("sleep 999 &", ""),
    ]
    assert [each.strip() for each in run_block(reader, examples)] == ["", "1 1\n2", ""]


def test_dots_are_any_text() -> None:
    assert is_as_expected("a ... b\n...", "a 1\n2 b\nc\n")
    assert is_as_expected('{"a": ..., "b": [1.5]}', '\n{"a": 3, "b": [1.5]}\n')
    assert not is_as_expected("a ... b", "a 1 c")
    assert not is_as_expected("1.5", "1x5")
