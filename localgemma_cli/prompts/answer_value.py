"""The value of an answer that has a constraint, and the code block of one that has a block."""

import json
import re

from localgemma_cli.constraint import Choices, Constraint, JsonSchema
from localgemma_cli.prompts.grammar import grammar_of
from localgemma_cli.prompts.json_schema import schema_violation

# CommonMark 4.5: a fence of three or more, indented by up to three spaces; a longer one closes it, too.
_BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)^ {0,3}\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)


def answer_value(constraint: Constraint, text: str) -> object:
    """The JSON value of `text`, or the text itself; ValueError that says why `text` breaks the constraint."""
    if isinstance(constraint, JsonSchema):
        why = schema_violation(constraint.schema, text)
        if why is not None:
            raise ValueError(why)
        return json.loads(text)
    if isinstance(constraint, Choices):
        if text not in constraint.choices:
            raise ValueError("it is none of the choices")
    elif not _matches(grammar_of(constraint), text):
        raise ValueError(f"it does not match {constraint.regex}")
    return text


def _matches(grammar: str, text: str) -> bool:
    from llguidance import LLMatcher, LLTokenizer

    data = list(text.encode())
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def first_code_block(text: str) -> str | None:
    """The first fenced code block's content with its last newline; None without a whole block."""
    found = _BLOCK.search(text)
    return None if found is None else found[2]
