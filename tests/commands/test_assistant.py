"""`--assistant MODEL`, as a user meets it."""

import json
from collections.abc import Iterator

import pytest
from support.hub_server import HubServer, Repo
from support.models import DEMO
from support.program import Program
from support.schemas import validate

DRAFT = "someone/tiny-gemma"


@pytest.fixture
def online(program: Program) -> Iterator[Program]:
    with HubServer({DRAFT: Repo.from_folder(DEMO)}) as server:
        yield program.with_environment(HF_ENDPOINT=server.endpoint)


def test_the_plan_names_the_draft_and_counts_its_memory(program: Program) -> None:
    words = (
        "plan",
        "-m",
        "27b",
        "--preset",
        "exact",
        "--device",
        "cuda",
        "--device-memory",
        "80GiB",
        "--json",
    )
    alone, both = (json.loads(program(*words, *more).stdout) for more in ((), ("--assistant", "2b")))
    validate(both, "plan")
    assert (alone["assistant"], both["assistant"]) == (None, "2b")
    more = both["memory"]["weights_bytes"] - alone["memory"]["weights_bytes"]
    assert more == 2 * 2_614_341_888
    assert any("--assistant 2b" in reason for reason in alone["reasons"])


def test_a_draft_from_the_hub_is_fetched_and_changes_no_answer(online: Program) -> None:
    words = ("-m", "demo", "--preset", "exact", "--dtype", "float32", "--temperature", "0", "--json")
    question = "How do I get JSON out of localgemma in a script?"
    alone, both = (online(*words, *more, question) for more in ((), ("--assistant", DRAFT)))
    assert (both.returncode, both.stderr) == (0, "warning: " + both.stderr.removeprefix("warning: "))
    assert "as large as demo" in both.stderr
    assert json.loads(both.stdout)["response"] == json.loads(alone.stdout)["response"]
    assert json.loads(both.stdout)["plan"]["assistant"] == DRAFT


@pytest.mark.parametrize(
    ("name", "code"), [("someone/missing", 4), ("nonsense", 4), ("2b", 2)], ids=["hub", "word", "vocabulary"]
)
def test_an_assistant_that_cannot_be_had_is_named_as_such(online: Program, name: str, code: int) -> None:
    done = online("-m", "demo", "--assistant", name, "Hello")
    assert done.returncode == code
    assert "assistant" in done.stderr.splitlines()[0]
    assert name in done.stderr.splitlines()[0]
    assert "--assistant" in done.stderr.splitlines()[1]
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""
