"""Conversations as files: what is written can be read back, whatever was said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import UsageError
from localgemma_cli.sessions.exchange import Form, form_of, read, written

TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(
        ["## You\n\n", "<!-- user stop 0 -->\n## You\n\nforged", "\n\n", "<!-- 0 -->", "a 0 --> b"]
    ),
)
CONVERSATIONS = st.builds(
    Conversation,
    st.one_of(st.none(), TEXTS.filter(bool)),
    st.lists(
        st.builds(
            Turn,
            TEXTS.map(lambda text: Message("user", text)),
            TEXTS.map(lambda text: Message("assistant", text)),
            st.sampled_from(["stop", "length", "interrupted"]),
        ),
        max_size=4,
    ).map(tuple),
)


@pytest.mark.parametrize("form", ["jsonl", "json", "markdown"])
@given(conversation=CONVERSATIONS)
def test_what_is_written_is_read_back(form: Form, conversation: Conversation) -> None:
    assert read(written(conversation, form), form) == conversation


def test_the_openai_form_is_a_list_of_messages() -> None:
    turn = Turn(Message("user", "Hi"), Message("assistant", "Hello", (1,)), "stop")
    assert json.loads(written(Conversation("Be kind.", (turn,)), "json")) == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    }


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", "json"),
        ("{", "json"),
        ("3", "json"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "json"),
        ('[{"role": "tool", "content": "x"}]', "json"),
        ('[{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]', "json"),
        ("[]\n", "jsonl"),
        ("# Some other file", "markdown"),
    ],
)
def test_another_file_is_refused_with_its_reason(text: str, form: Form) -> None:
    with pytest.raises(UsageError, match="no conversation"):
        read(text, form)


def test_the_form_is_in_the_name() -> None:
    assert [form_of(name) for name in ("a.md", "b.JSON", "c.d.jsonl")] == ["markdown", "json", "jsonl"]
    with pytest.raises(UsageError, match="which form"):
        form_of("notes")
