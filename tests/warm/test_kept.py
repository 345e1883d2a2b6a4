"""Calls with --keep-alive answer as calls without it, from one process that stays."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_calls import wait_until
from support.kept import KEEP, keeping_program, kept_rows, kept_socket
from support.program import Program
from support.schemas import validate

QUESTIONS = ["Who are you?", "What is the memory preset?", "Wie heißt du? 🐍", "a\n\n  b <end_of_turn> c"]
PAIRS = int(os.environ.get("LOCALGEMMA_TEST_PAIRS", "4"))
ASK = ("-m", "demo", "--no-save", "--max-new-tokens", "40")


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with keeping_program() as program:
        done = program(*ASK, *KEEP, "Hello")
        assert (done.returncode, done.stderr) == (0, "")
        yield program


def test_a_later_call_answers_as_a_cold_one_token_for_token(program: Program) -> None:
    (row,) = kept_rows(program)
    for number in range(PAIRS):
        how = ("--temperature", "0") if number % 2 else ("--seed", str(number))
        words = (*ASK, *how, f"{QUESTIONS[number % len(QUESTIONS)]}{'!' * (number // len(QUESTIONS))}")
        cold, warm = program(*words), program(*words, *KEEP)
        assert (warm.returncode, warm.stdout, warm.stderr) == (0, cold.stdout, "")
    assert [each["pid"] for each in kept_rows(program)] == [row["pid"]]


def without_measures(answer: dict[str, Any]) -> dict[str, Any]:
    """What two runs have in common: not their times, the memory that was free, what was cached."""
    answer["timing"] = list(answer["timing"])
    answer["plan"]["memory"].pop("available_bytes")
    answer["plan"].pop("reasons")
    answer["usage"].pop("cached_prompt_tokens")
    return answer


def test_json_has_the_same_fields_and_the_times_of_this_call(program: Program) -> None:
    words = (*ASK, "--json", "--temperature", "0", "Who are you?")
    cold, warm = (json.loads(program(*words, *more).stdout) for more in ((), KEEP))
    validate(warm, "answer")
    assert 0 < warm["timing"]["load_seconds"] != cold["timing"]["load_seconds"]
    assert without_measures(warm) == without_measures(cold)


def test_a_conversation_continues_and_its_beginning_stays_in_the_kv_cache(program: Program) -> None:
    answers = []
    for name, more in (("cold", ()), ("warm", KEEP)):
        words = ("-m", "demo", "--json", "--temperature", "0", "--session", name, *more)
        turns = [json.loads(program(*words, each).stdout) for each in QUESTIONS[:2]]
        answers.append([turn["response"] for turn in turns])
    assert answers[0] == answers[1]
    first, second = (turn["usage"] for turn in turns)
    known = first["prompt_tokens"] + first["completion_tokens"] - 1  # the last token was never computed with
    assert second["cached_prompt_tokens"] >= known - 1


def test_an_error_is_that_of_a_cold_call(program: Program) -> None:
    words = ("-m", "demo", "-")
    cold, warm = program(*words, stdin="x " * 2000), program(*words, *KEEP, stdin="x " * 2000)
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert warm.returncode == 6


def test_other_options_for_the_model_are_another_model(program: Program) -> None:
    """It is not loaded here: a model that does not fit shows that the kept one was not used."""
    done = program(*ASK, *KEEP, "--host-memory", "1MiB", "Hello")
    assert done.returncode == 5
    assert "localgemma stop" not in done.stderr
    assert len(kept_rows(program)) == 1
    done = program(*ASK, "--host-memory", "400MiB", "Hello")  # what is missing is what the kept model uses
    assert done.returncode == 5
    assert "Free the models that --keep-alive keeps: localgemma stop." in done.stderr


def test_ps_shows_the_plan_and_nothing_of_a_prompt(program: Program) -> None:
    secret = "xylophone"
    program(*ASK, *KEEP, secret, "and", "Who are you?")
    (row,) = kept_rows(program)
    assert (row["model"], row["preset"], row["device"], row["state"]) == ("demo", "exact", "cpu", "idle")
    assert 0 < float(str(row["idle_seconds_left"])) <= 600
    assert int(str(row["memory_bytes"])) > 50_000_000
    line = program("ps").stdout
    assert re.fullmatch(r"demo exact, cpu, \w+ [\d.]+ GB process \d+ ends in \d+ min\n", line)
    process = Path(f"/proc/{row['pid']}")
    if process.exists():  # Linux
        assert secret.encode() not in process.joinpath("cmdline").read_bytes()
        assert process.joinpath("cwd").readlink() == Path("/")
        opened = {os.readlink(each) for each in process.joinpath("fd").iterdir()}
        assert {each for each in opened if each.startswith(str(program.folder))} == set()
    for path in (each for each in program.folder.rglob("*") if each.is_file()):
        assert secret.encode() not in path.read_bytes(), path


def test_the_socket_and_its_folder_are_private(program: Program) -> None:
    path = kept_socket(program)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_ctrl_c_stops_the_answer_and_leaves_the_process(program: Program) -> None:
    (row,) = kept_rows(program)
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as lines:
        words = ("-m", "demo", "--no-save", "--jsonl", "--repetition-penalty", "0.01", "--seed", "1")
        pid = program.start(*words, *KEEP, "Tell me a very long story", stdout=writing, stderr=writing)
        os.close(writing)
        while json.loads(lines.readline())["event"] != "delta":
            pass
        os.kill(pid, signal.SIGINT)
        end = json.loads(lines.readlines()[-1])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert end["finish_reason"] == "interrupted"
    wait_until(lambda: kept_rows(program)[0]["state"] == "idle")
    assert kept_rows(program)[0]["pid"] == row["pid"]
    assert program(*ASK, *KEEP, "Hello").returncode == 0


def test_stop_frees_the_model(program: Program) -> None:
    (row,) = kept_rows(program)
    unknown = program("stop", "9b")
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (4, "localgemma: 9b is not kept loaded.")
    done = program("stop", "demo")
    assert (done.returncode, done.stderr) == (0, "Freed demo.\n")
    assert kept_rows(program) == []
    assert not list((program.folder / "home/run").glob("*.kept"))
    wait_until(lambda: not Path(f"/proc/{row['pid']}").exists())
    assert program("ps").stderr == "No model is kept loaded. --keep-alive 10m keeps the model of a call.\n"
    assert program("stop").stderr == "No model is kept loaded.\n"
