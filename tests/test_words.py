"""The words of the program: plain English in every message, help text, docstring, comment and page."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXEMPT = {"localgemma_cli/demo/corpus", "localgemma_cli/demo/dialogues.py"}  # what the demo was trained on
ANSWER_OF_THE_DEMO = "not told"  # the evaluation looks for it

WORN = (
    r"\bbe had\b",
    r"goes on with it",
    r"took no more",
    r"is none that",
    r"\b(has|have) to be told\b",
    r"\b(find|finds|found) out\b",
    r"\bcounts? for\b",
    r"\b(stand|stands|stood)\b(?!-| by)",
    r"\b(lie|lies|lay) in\b",
    r"\b(tells|told)\b",
    r"\b(goes|gone) on\b",
    r"\bgo on with\b",
    r"\bnone there (is|was)\b",
    r"\bwhat is said\b",
    r"(?<!there )(?<!that )\bis no (?!longer|more\b|less\b)",
    r"\b(do|does) not take (?!place|part|effect|turns)",
    r"\btakes? no (?!part|time|more)",
    r"\bleave [^.]{1,40} out\b",
    r"\bwhoever\b",
    r"\banew\b",
    r"\bunforeseen\b",
    r"\bin (the|its|their) place of\b",
    r"\bwhatever [^.;:]{1,40} says\b",
    r"\bwhere there (is|are) none\b",
    r"\b(is|are) there already\b",
)
WORN_PHRASE = re.compile("|".join(WORN), re.IGNORECASE)


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every string and comment; an f-string is one text, with … for its values."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = (each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
            yield node.lineno, "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def worn_phrases(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        texts = list(python_texts(source))
    else:  # by paragraph, since a phrase may be broken over two lines
        texts = [(n, text) for n, text in enumerate(re.split(r"\n\s*\n", source), 1)]
    joined = ((number, " ".join(text.split())) for number, text in texts)
    return [
        f"{path.relative_to(ROOT)}:{number}: “{match[0]}” in: {text[max(0, match.start() - 60) :][:160]}"
        for number, text in joined
        for match in WORN_PHRASE.finditer(text)
        if text != ANSWER_OF_THE_DEMO
    ]


def checked_files() -> list[Path]:
    found = [
        *(ROOT / "localgemma_cli").rglob("*.py"),
        *(ROOT / "presets").glob("*.toml"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "README.md",
    ]
    return sorted(path for path in found if not any(path.is_relative_to(ROOT / exempt) for exempt in EXEMPT))


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_worn_phrase_is_left(path: Path) -> None:
    hits = worn_phrases(path)
    assert not hits, "\n".join(hits)


def test_phrases_are_found_in_fstrings_docstrings_and_comments(tmp_path: Path) -> None:
    source = '"""This one cannot\nbe had."""\nname = f"{1} goes on " f"with {2}"  # which is no number\n'
    texts = [" ".join(text.split()) for _, text in python_texts(source)]
    assert [bool(WORN_PHRASE.search(text)) for text in texts] == [True, True, True]
