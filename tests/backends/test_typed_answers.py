"""Every finished answer is valid: random schemas, both local engines, three temperatures.

A few here; all of them, some 40 minutes on two cores: `pytest -m slow tests/backends/test_typed_answers.py`.
LOCALGEMMA_TEST_SCHEMAS is their number, 300 by default.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event as Cancel

import pytest
import regex
from jsonschema import Draft202012Validator, ValidationError, validators
from support.checkpoints import plan_for
from support.models import DEMO
from support.random_schemas import random_schema

from localgemma_cli.backends.base import Backend
from localgemma_cli.backends.llamacpp.backend import check_form
from localgemma_cli.backends.llamacpp.backend import load_backend as load_gguf
from localgemma_cli.backends.pytorch.backend import load_backend
from localgemma_cli.constraint import Choices, JsonSchema, Regex
from localgemma_cli.conversation import Message
from localgemma_cli.events import Delta, Finished, Timing, Usage
from localgemma_cli.prompts.answer_value import answer_value
from localgemma_cli.prompts.grammar import require_supported
from localgemma_cli.sampling import Sampling

TEMPERATURES = (0, 0.7, 1.5)
COUNT = int(os.environ.get("LOCALGEMMA_TEST_SCHEMAS", "300"))
QUESTION = [Message("user", "Describe a person as JSON:")]


def _matches(_: object, pattern: str, value: object, __: object) -> Iterable[ValidationError]:
    if isinstance(value, str) and not regex.search(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


# Python's own `re` has no \p{Lu}
Validator = validators.extend(Draft202012Validator, {"pattern": _matches})


def ask(backend: Backend, sampling: Sampling) -> tuple[str, Finished]:
    *events, finished = backend.stream(QUESTION, sampling, Cancel())
    assert isinstance(finished, Finished)
    return "".join(event.text for event in events if isinstance(event, Delta)), finished


def count_valid(backend: Backend, seeds: Iterable[int], limit: int = 160) -> Counter[str]:
    """Finish reasons; every answer that is finished is valid by another package's validator."""
    reasons: Counter[str] = Counter()
    for seed in seeds:
        schema = random_schema(seed)
        constraint = JsonSchema(json.dumps(schema, ensure_ascii=False))
        require_supported(constraint, f"schema {seed}")
        for temperature in TEMPERATURES:
            sampling = Sampling(temperature, seed=seed, max_new_tokens=limit, constraint=constraint)
            text, finished = ask(backend, sampling)
            reasons[finished.finish_reason] += 1
            if finished.finish_reason == "stop":
                Validator(schema).validate(json.loads(text))
                answer_value(constraint, text)
            else:
                assert finished.finish_reason == "length", (seed, temperature, text)
    return reasons


@pytest.fixture(scope="module")
def demo() -> Backend:
    return load_backend(plan_for(DEMO, "exact"), DEMO, lambda _: None)


@pytest.fixture(scope="module")
def gguf(real_gguf: Path) -> Backend:
    return load_gguf(plan_for(real_gguf, "exact", context=512), real_gguf, lambda _: None)


def test_some_answers_of_the_demo_are_valid(demo: Backend) -> None:
    assert count_valid(demo, range(5))["stop"] > 10


def test_an_answer_of_llama_cpp_without_its_form_is_an_error() -> None:
    finished = Finished("stop", Usage(1, 0, 2), Timing(0.1, None, 0.1))
    for text, reason in (('{"a": }', "error"), ('{"a": 1}', "stop")):
        *_, last = check_form(iter([Delta(text), finished]), JsonSchema('{"type": "object"}'))
        assert isinstance(last, Finished)
        assert last.finish_reason == reason
        assert (last.error is None) == (reason == "stop")


def test_llama_cpp_keeps_to_a_schema_a_pattern_and_a_choice(gguf: Backend) -> None:
    below_zero = 11  # of whose numbers llama.cpp finds no multiple of 1e-9
    assert count_valid(gguf, (0, 1, below_zero), limit=80)["stop"] > 3
    pattern = Regex("(Es|it) [a-z]{2,5}é 🙂!")
    text, finished = ask(gguf, Sampling(temperature=1.5, seed=1, constraint=pattern))
    assert (answer_value(pattern, text), finished.finish_reason) == (text, "stop")
    choices = Choices(("JSON", "XML", "a very unlikely answer"))
    text, finished = ask(gguf, Sampling(temperature=0, constraint=choices))
    assert text == max(finished.choices or {}, key=lambda name: (finished.choices or {})[name])
    assert sum((finished.choices or {}).values()) == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_answers_of_the_demo_are_valid(
    demo: Backend, record_property: Callable[[str, object], None]
) -> None:
    reasons = count_valid(demo, range(COUNT))
    record_property("reasons", dict(reasons))
    assert reasons["stop"] > 0.8 * reasons.total()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("engine", ["pytorch", "llama.cpp"])
def test_all_answers_of_a_real_gemma_are_valid(
    engine: str,
    real_checkpoint: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    backend: Backend = (
        load_backend(plan_for(real_checkpoint, "exact", context=512), real_checkpoint, lambda _: None)
        if engine == "pytorch"
        else request.getfixturevalue("gguf")
    )
    reasons = count_valid(backend, range(COUNT))
    record_property("reasons", dict(reasons))
    assert reasons["stop"] > 0.8 * reasons.total()
