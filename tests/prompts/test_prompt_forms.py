"""The prompt forms: golden text and ids, the wall around control tokens, and where an answer ends."""

import functools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from threading import Event as Cancel
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import DEMO, demo_tokenizer, own_tokenizer

from localgemma_cli.backends.pytorch.backend import LoadOptions, load_backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.events import Delta, Finished
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.prompts.prompt_forms import built_in
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.stop_strings import StopStrings
from localgemma_cli.prompts.tokenizer import TokenizerSettings, build_tokenizer
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.sampling import Sampling

SHARED = os.environ.get("LOCALGEMMA_TEST_SHARED")
NAMED = ("gemma", "alpaca", "alpaca-chat", "raw")
CONTROL = ("<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SINGLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request."
)
SEVERAL = (
    "Below are some instructions that describe some tasks."
    " Write responses that appropriately complete each request."
)
TEXTS = {
    "gemma": "<start_of_turn>user\nAdd 2 and 3.<end_of_turn>\n<start_of_turn>model\n",
    "alpaca": f"{SINGLE}\n\n### Instruction:\nAdd 2 and 3.\n\n### Input:\n\n\n### Response:\n",
    "alpaca-chat": f"{SEVERAL}\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:\n",
    "raw": "Add 2 and 3.",
}
FILE = (
    "{% for m in messages %}{{ '<start_of_turn>' + m.role + ': ' + m.content | trim + '<end_of_turn>' }}"
    "{% endfor %}"
)


@functools.cache
def bare():
    """The demo's tokenizer without a template."""
    return replace(own_tokenizer(), templates={})


@functools.cache
def prompter(form: str, real: bool = False) -> Prompter:
    if not real:
        return Prompter(bare(), form)
    file = str(Path(SHARED or "") / "gemma2-tokenizer" / "tokenizer.json")
    return Prompter(
        build_tokenizer(tokenizers.Tokenizer.from_file(file), TokenizerSettings({}, (), {})), form
    )


@pytest.mark.parametrize(
    "real",
    [False, pytest.param(True, marks=pytest.mark.skipif(not SHARED, reason="needs LOCALGEMMA_TEST_SHARED"))],
)
@pytest.mark.parametrize("form", NAMED)
def test_golden_text_and_its_ids(form: str, real: bool) -> None:
    subject = prompter(form, real)
    messages = [Message("user", "Add 2 and 3.")]
    assert subject.text(messages) == "<bos>" + TEXTS[form]
    ids = subject.encode(messages)
    subject.tokenizer.library.encode_special_tokens = False  # the template's marks are control tokens
    assert ids == [2, *subject.tokenizer.library.encode(TEXTS[form], add_special_tokens=False).ids]


def test_a_line_input_begins_alpacas_input_block() -> None:
    text = prompter("alpaca").text([Message("user", "Add them.\n\n### Input:\n2 and 3\n")])
    assert text.endswith("### Instruction:\nAdd them.\n\n### Input:\n2 and 3\n\n### Response:\n")


@pytest.mark.parametrize("form", ["gemma", "alpaca", "alpaca-chat"])
def test_a_system_text_opens_the_first_request_once(form: str) -> None:
    text = prompter(form).text(
        [
            Message("system", "Be brief."),
            Message("user", "one"),
            Message("assistant", "two"),
            Message("user", "three"),
        ]
    )
    assert text.count("Be brief.") == 1
    assert "\nBe brief.\n\none" in text


def test_a_base_model_continues_the_last_text_untouched_and_takes_no_system_text() -> None:
    subject = prompter("raw")
    asked = [Message("user", "before"), Message("assistant", "then"), Message("user", "  Once upon ")]
    assert subject.text(asked) == "<bos>  Once upon "
    with pytest.raises(UsageError, match="no system text"):
        subject.encode([Message("system", "Be brief."), Message("user", "x")])


def test_the_form_comes_from_the_repository_and_not_from_its_name() -> None:
    assert Prompter(own_tokenizer(), "auto", "raw").form.template is None
    assert Prompter(bare(), "auto", "alpaca").form == built_in("alpaca")
    assert Prompter(bare(), "auto").form.is_raw
    assert Prompter(own_tokenizer(), "raw").form.is_raw


hostile = st.lists(
    st.one_of(
        st.sampled_from(
            [*CONTROL, "<", ">", "_of_turn>", "<start", "### Response:\n", "\n### Input:\n", "\n"]
        ),
        st.sampled_from(["\U000f0000", "\U000f0001", "{{ bos_token }}", "{% raw %}"]),
        st.text(max_size=8),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("form", [*NAMED, "file"])
@settings(max_examples=100, deadline=None)
@given(system=hostile, question=hostile, answer=hostile, again=hostile)
def test_no_text_can_forge_a_control_token_in_any_form(
    form: str, system: str, question: str, answer: str, again: str
) -> None:
    subject = file_prompter() if form == "file" else prompter(form)
    plain = [Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    messages = [Message("user", question), Message("assistant", answer), Message("user", again)]
    if system and form != "raw":
        messages.insert(0, Message("system", system))
        plain.insert(0, Message("system", "s"))
    ids = {name: demo_tokenizer().convert_tokens_to_ids(name) for name in CONTROL}
    got, meant = subject.encode(messages), subject.encode(plain)
    assert {n: got.count(i) for n, i in ids.items()} == {n: meant.count(i) for n, i in ids.items()}
    assert got.count(ids["<bos>"]) == 1


@functools.cache
def file_prompter() -> Prompter:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.jinja"
        file.write_text(FILE)
        return Prompter(bare(), str(file))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{{ bos_token }}\n{% for %}", r"line 2"),
        (b"{{ messages[0].nothing.at_all }}", "nothing"),
        (b"no text of the user", "omits"),
        (b"<|turn>{{ messages[0].content }}", "no <|turn>"),
        (b"{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "unsafe"),
        (b"\xff", "UTF-8"),
        (None, "Cannot read"),
    ],
    ids=["syntax", "undefined", "drops the text", "another's turns", "sandbox", "not text", "no file"],
)
def test_a_template_file_that_cannot_be_used_says_why(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(LocalGemmaError) as caught:
        Prompter(bare(), str(file))
    assert isinstance(caught.value, NotFoundError if content is None else UsageError)
    assert says in caught.value.message
    assert str(file) in caught.value.message


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["#", "##", "###", " In", "struction", ":", "\n", "x", ""]), max_size=30)
)
def test_a_stop_text_ends_the_text_wherever_the_pieces_break(pieces: list[str]) -> None:
    stop, subject, told = "### Instruction:", StopStrings(("### Instruction:",)), ""
    for piece in pieces:
        told += subject.add(piece)
        if subject.found:
            break
    whole = "".join(pieces)
    assert subject.found == (stop in whole)
    assert told + ("" if subject.found else subject.rest("!")) == (
        whole.partition(stop)[0] if stop in whole else whole + "!"
    )
    if subject.found:
        assert whole.partition(stop)[0].startswith("".join(pieces[: subject.tokens]))
    else:
        assert subject.tokens == len(pieces)


class CountsSlices(str):
    """A text that counts the parts that are taken of it."""

    slices = 0

    def __getitem__(self, key: Any) -> str:
        self.slices += 1
        return super().__getitem__(key)


def test_the_length_of_a_stop_text_costs_nothing() -> None:
    """One of a megabyte, in a request to the server, took minutes for each token."""
    stop = CountsSlices("ab" * 1000)
    assert [(text := StopStrings([stop])).add("ca"), text.rest("")] == ["c", "a"]
    assert stop.slices <= 2


def test_a_second_alpaca_turn_continues_the_first_ones_ids_and_a_stop_text_ends_an_answer() -> None:
    facts = resolve("demo", revision=None, offline=True).facts
    plan = make_plan(facts, "exact", probe("cpu"), Overrides(device="cpu", dtype="float32"), load_presets())
    greedy = Sampling(temperature=0, max_new_tokens=24)
    for form in ("alpaca", "alpaca-chat"):
        backend = load_backend(plan, DEMO, ignore_progress, LoadOptions(template=form))
        first = [Message("user", "What is the memory preset?")]
        *deltas, finished = backend.stream(first, greedy, Cancel())
        assert isinstance(finished, Finished)
        answer = Message("assistant", "not what it wrote", finished.token_ids)
        second = [*first, answer, Message("user", "And exact?")]
        known = [*backend._prompter.encode(first), *(finished.token_ids or ())]
        assert backend._prompter.encode(second)[: len(known)] == known
        *_, again = backend.stream(second, greedy, Cancel())
        assert isinstance(again, Finished)
        assert again.usage.cached_prompt_tokens >= len(known) - 1
    text = "".join(delta.text for delta in deltas if isinstance(delta, Delta))
    word = text.split()[3]
    object.__setattr__(backend._prompter.form, "stops", (word,))
    *deltas, finished = backend.stream(first, greedy, Cancel())
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == text.partition(word)[0]
    assert isinstance(finished, Finished)
    assert finished.finish_reason == "stop"
    assert text.partition(word)[0].startswith(demo_tokenizer().decode(finished.token_ids))


def test_a_template_that_makes_control_tokens_of_user_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}{{ messages[-1].content | lower }}")
    prompter = Prompter(bare(), str(file))
    assert prompter.encode([Message("user", "Hello")])
    with pytest.raises(UsageError, match="control tokens"):
        prompter.encode([Message("user", "Hello<END_OF_TURN>")])
