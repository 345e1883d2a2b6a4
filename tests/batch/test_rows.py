"""From records to rows: what is asked, and which records are refused."""

import tracemalloc
from collections.abc import Mapping

import pytest

from localgemma_cli.batch.records import Record
from localgemma_cli.batch.rows import Row, RowDefaults, make_rows
from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.conversation import Message
from localgemma_cli.prompt_template import parse_template
from localgemma_cli.sampling import Mode, Sampling

PLAIN = RowDefaults(None, None, Mode.CHAT, Sampling())
CELLS = RowDefaults(None, None, Mode.CHAT, Sampling(), is_text=True)
USER, ASSISTANT, SYSTEM = (
    {"role": role, "content": f"{role} text"} for role in ("user", "assistant", "system")
)


def rows(*fields: Mapping[str, object], defaults: RowDefaults = PLAIN) -> list[Row]:
    return list(make_rows((Record(repr(each).encode(), 9, each) for each in fields), defaults))


def request(fields: Mapping[str, object], defaults: RowDefaults = PLAIN) -> tuple[list[Message], Sampling]:
    (row,) = rows(fields, defaults=defaults)
    assert row.request is not None, row.error
    return list(row.request[0]), row.request[1]


def test_a_prompt_has_the_system_text_of_its_row_or_of_the_command_line() -> None:
    asked = [Message("user", "a\nb")]
    assert request({"prompt": "a\r\nb", "system": None}) == (asked, Sampling())
    defaults = RowDefaults(None, "Be short.", Mode.FACTUAL, Sampling())
    messages, _ = request({"prompt": "a\nb"}, defaults)
    assert messages == [
        Message("system", "Be short.\n\nAnswer in a short and factual way."),
        *asked,
    ]
    assert request({"prompt": "a\nb", "system": "Rhyme."}, defaults)[0][0].content.startswith("Rhyme.\n")


def test_messages_are_a_conversation_that_ends_with_the_user() -> None:
    listed = [
        Message("user", "user text"),
        Message("assistant", "assistant text"),
        Message("user", "user text"),
    ]
    assert request({"messages": [USER, ASSISTANT, USER]})[0] == listed
    assert request({"messages": [SYSTEM, USER]})[0] == [Message("system", "system text"), listed[0]]


def test_sampling_parameters_of_a_row_replace_those_of_the_command_line() -> None:
    defaults = RowDefaults(None, None, Mode.CHAT, Sampling(temperature=0.5, seed=1))
    fields = {"prompt": "a", "temperature": 0, "max_new_tokens": 3, "seed": None, "label": "mine"}
    assert request(fields, defaults)[1] == Sampling(temperature=0, max_new_tokens=3, seed=1)


def test_cells_of_csv_are_text_except_the_parameters() -> None:
    fields = {"prompt": "7", "id": "1", "temperature": "0.5", "top_k": "3", "system": "", "seed": ""}
    assert request(fields, CELLS) == ([Message("user", "7")], Sampling(temperature=0.5, top_k=3))
    (row,) = rows({"prompt": "a", "top_k": "3.5"}, defaults=CELLS)
    assert row.error is not None
    assert row.error.message == "top_k must be a whole number (got 3.5)."


def test_with_a_template_fields_are_data_except_the_id() -> None:
    template = parse_template("{temperature}: {prompt}", "--prompt-template")
    defaults = RowDefaults(template, "Be short.", Mode.CHAT, Sampling())
    fields = {"id": 5, "temperature": "31 degrees", "prompt": 1, "system": "ignored", "top_p": "high"}
    asked = [Message("system", "Be short."), Message("user", "31 degrees: 1")]
    assert request(fields, defaults) == (asked, Sampling())
    (row,) = rows({"id": 5, "prompt": 1}, defaults=defaults)
    assert row.id == 5
    assert row.error is not None
    assert row.error.message == "There is no field 'temperature'."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "The row has neither prompt nor messages."),
        ({"prompt": "a", "messages": [USER]}, "The row has both prompt and messages."),
        ({"prompt": 3}, "prompt must be text (got 3)."),
        ({"prompt": " \n"}, "prompt is empty."),
        ({"prompt": "a", "id": 1.5}, "id must be text or a whole number (got 1.5)."),
        ({"prompt": "a", "id": True}, "id must be text or a whole number (got True)."),
        ({"prompt": "a", "temprature": 1}, "Unknown field 'temprature'."),
        ({"prompt": "a", "temperature": "hot"}, "temperature must be a number (got 'hot')."),
        ({"prompt": "a", "seed": 1.5}, "seed must be a whole number (got 1.5)."),
        ({"prompt": "a", "top_k": True}, "top_k must be a whole number (got True)."),
        ({"prompt": "a", "min_p": 2}, "min_p must be between 0 and 1 (got 2)."),
        ({"prompt": "a", "schema": "int"}, "schema must be an object (got 'int')."),
        ({"prompt": "a", "schema": {"type": "int"}}, "schema cannot be used: int is not a type"),
        ({"prompt": "a", "choice": "a,b"}, "choice must be a list of texts (got 'a,b')."),
        ({"prompt": "a", "choice": ["a"]}, "choice needs two or more words."),
        ({"prompt": "a", "regex": "("}, "regex cannot be used: "),
        ({"prompt": "a", "regex": "a", "choice": ["a", "b"]}, "The row has both choice and regex."),
        ({"prompt": "a", "logprobs": 21}, "logprobs must be between 0 and 20 (got 21)."),
        ({"messages": []}, "messages must be a list of messages (got [])."),
        ({"messages": [USER, USER]}, "The roles of messages must alternate"),
        ({"messages": [USER, ASSISTANT]}, "The roles of messages must alternate"),
        ({"messages": [SYSTEM]}, "The roles of messages must alternate"),
        ({"messages": [SYSTEM, USER], "system": "a"}, "The row has two system texts"),
        ({"messages": ["a"]}, "messages[0] must be an object with role and content (got 'a')."),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role must be user"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be text (got None)."),
    ],
)
def test_a_row_that_cannot_be_asked_has_an_error(fields: Mapping[str, object], message: str) -> None:
    (row,) = rows(fields)
    assert row.error is not None
    assert row.error.message.startswith(message)


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"schema": {"type": "integer"}}, JsonSchema('{"type": "integer"}')),
        ({"choice": ["yes", "no"]}, Choices(("yes", "no"))),
        ({"regex": "[ab]+"}, Regex("[ab]+")),
        ({}, Regex("default")),
    ],
)
def test_a_row_can_have_a_form_of_its_own(fields: Mapping[str, object], constraint: Constraint) -> None:
    defaults = RowDefaults(None, None, Mode.CHAT, Sampling(constraint=Regex("default")))
    assert request({"prompt": "a", **fields}, defaults)[1].constraint == constraint


def test_an_id_occurs_once_and_a_number_is_not_its_text() -> None:
    made = rows(*({"id": id, "prompt": "a"} for id in ("x", 1, "1", "x", 1)))
    assert [each.error and each.error.message for each in made] == [
        None,
        None,
        None,
        "Row 0 has the same id: 'x'.",
        "Row 1 has the same id: 1.",
    ]


def test_a_digest_changes_with_everything_that_decides_the_answer() -> None:
    other = RowDefaults(None, "Be short.", Mode.CHAT, Sampling())
    cold = RowDefaults(None, None, Mode.CHAT, Sampling(temperature=0))
    digests = [
        rows(fields, defaults=defaults)[0].digest
        for fields, defaults in (
            ({"prompt": "a"}, PLAIN),
            ({"prompt": "b"}, PLAIN),
            ({"prompt": "a", "id": 1}, PLAIN),
            ({"prompt": "a", "seed": 1}, PLAIN),
            ({"prompt": "a"}, other),
            ({"prompt": "a"}, cold),
            ({"prompt": "a", "regex": "a"}, PLAIN),
            ({"prompt": 1}, PLAIN),
            ({"prompt": 2}, PLAIN),
        )
    ]
    assert len(set(digests)) == len(digests)
    assert rows({"prompt": "a", "label": 1})[0].digest == digests[0]


def test_ids_of_many_rows_are_not_held_in_memory() -> None:
    made = make_rows((Record(b"", 0, {"id": n, "prompt": "a"}) for n in range(4_000)), PLAIN)
    tracemalloc.start()
    sizes = []
    for row in made:
        if row.index in (2_000, 3_999):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 50_000
