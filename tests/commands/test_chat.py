"""The program as scripts see it: stdin, stdout, exit codes."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.program import COMMAND, HELD, Program
from support.schemas import validate


def prompt_of(program: Program, *words: str, stdin: str | None = None) -> str:
    """The user text as the model would be given it."""
    done = program("prompt", "-m", "demo", "--json", *words, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"].split("user\n", 1)[1].split("<end_of_turn>")[0]


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        (["Hello", "there"], None, "Hello there"),
        (["-"], "from a pipe\n", "from a pipe"),
        ([], "from a pipe\n", "from a pipe"),
        (["Summarise:"], "line one\nline two\n", "Summarise:\n\nline one\nline two"),
        (["Hello"], "  \n", "Hello"),
        ([], "\ufeffwith a byte order mark", "with a byte order mark"),
        (["--", "plan", "my", "week"], None, "plan my week"),
    ],
)
def test_where_the_prompt_comes_from(
    program: Program, words: list[str], stdin: str | None, expected: str
) -> None:
    assert prompt_of(program, *words, stdin=stdin) == expected


def test_an_answer_in_a_pipe_has_no_escapes_and_ends_in_one_newline(program: Program) -> None:
    done = program("-m", "demo", "-", stdin="What is the memory preset?\n")
    assert done.returncode == 0
    assert re.search("4[- ]bit|NF4", done.stdout)
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.endswith("\n")
    assert not done.stdout.endswith("\n\n")
    assert done.stderr == ""


def test_json_is_one_object_that_the_schema_describes(program: Program) -> None:
    done = program("-m", "demo", "--json", "--seed", "1", "What is the memory preset?")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    validate(answer, "answer")
    assert done.stdout.count("\n") == 1
    assert answer["finish_reason"] == "stop"
    assert answer["plan"]["model"]["name"] == "demo"
    assert answer["usage"]["prompt_tokens"] > 5
    assert answer["usage"]["completion_tokens"] > 5
    assert answer["timing"]["total_seconds"] > 0


def test_json_has_log_probabilities_where_they_are_asked_for(program: Program) -> None:
    words = ("-m", "demo", "--temperature", "0", "--max-new-tokens", "4", "Who are you?")
    answer = json.loads(program("--json", "--logprobs", "2", *words).stdout)
    validate(answer, "answer")
    content = answer["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == answer["response"]
    assert [len(each["top_logprobs"]) for each in content] == [2] * 4
    (program.config / "config.toml").write_text("logprobs = 0\n")
    last = json.loads(program("--jsonl", *words).stdout.splitlines()[-1])
    assert [each["id"] for each in last["logprobs"]["content"]] == [each["id"] for each in content]
    refused = program("--logprobs", "1", *words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--logprobs needs --json or --jsonl." in refused.stderr


def test_jsonl_streams_what_json_says(program: Program) -> None:
    done = program("-m", "demo", "--jsonl", "--temperature", "0", "What is the memory preset?")
    start, *deltas, end = map(json.loads, done.stdout.splitlines())
    assert start["event"] == "start"
    assert {event["event"] for event in deltas} == {"delta"}
    assert len(deltas) > 3
    assert "".join(event["text"] for event in deltas) == end["response"]
    assert end.pop("event") == "end"
    validate(end, "answer")


def test_a_closed_pipe_ends_quietly(program: Program) -> None:
    errors = program.folder / "errors"
    reading, writing = os.pipe()
    with errors.open("wb") as stderr:
        pid = program.start(
            "-m", "demo", "What is the memory preset?", stdout=writing, stderr=stderr.fileno()
        )
    os.close(writing)
    assert os.read(reading, 5)
    os.close(reading)
    assert exit_code(pid) == 0
    assert errors.read_text() == ""


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told(program: Program) -> None:
    errors = program.folder / "errors"
    with open("/dev/full", "wb") as full, errors.open("wb") as stderr:
        pid = program.start("-m", "demo", "Hello", stdout=full.fileno(), stderr=stderr.fileno())
    assert exit_code(pid) == 1
    assert "No space left" in errors.read_text()
    assert "Traceback" not in errors.read_text()


def gemma_config(folder: Path, **more: object) -> str:
    folder.mkdir()
    config = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], **more}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


USAGE = {
    "empty prompt": ([""], ""),
    "only spaces": (["   "], ""),
    "no option": (["--nonsense", "hi"], ""),
    "no number": (["--temperature", "warm", "hi"], ""),
    "out of range": (["--temperature", "-1", "hi"], ""),
    "not a number": (["--temperature", "nan", "hi"], ""),
    "top-p": (["--top-p", "1.5", "hi"], ""),
    "27b in fp16": (["-m", "27b", "--dtype", "float16", "hi"], ""),
    "unknown preset": (["-m", "demo", "--preset", "fast", "hi"], ""),
    "two system texts": (["-m", "demo", "-s", "a", "--system-file", "b", "hi"], ""),
    "binary": (["-m", "demo", "-"], b"\x7fELF\0\1"),
    "half a character": (["-m", "demo", "-"], "ü".encode()[:1]),
    "too long a context": (["-m", "demo", "--context", "999999", "hi"], ""),
}


@pytest.mark.parametrize("case", USAGE.values(), ids=USAGE.keys())
def test_bad_usage_is_exit_2_with_a_reason_and_a_hint(program: Program, case: tuple) -> None:
    words, stdin = case
    done = program(*words, stdin=stdin)
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("localgemma: ")
    assert second.startswith("  ")


@pytest.mark.parametrize(
    "words", [["--jsonl", "hi"], ["-i", "hi"], ["-m", "demo", "--nonsense", "hi"], ["-m", "nonsense", "hi"]]
)
def test_with_json_an_error_is_one_object_on_stderr(program: Program, words: list[str]) -> None:
    done = program("--json", *words)
    assert done.returncode in (2, 4)
    assert done.stdout == ""
    validate(json.loads(done.stderr), "error")


def test_a_huge_prompt_is_refused_at_once(program: Program) -> None:
    shell = f"{' '.join(COMMAND)} -m demo - < /dev/zero"
    done = program.shell(shell)
    assert done.returncode == 2
    assert "4.2 MB" in done.stderr


# exit 3 (no access) is provoked against the hub on loopback, in test_hub.py


def test_exit_4_not_found(program: Program) -> None:
    done = program("-m", "nonsense", "hi")
    assert done.returncode == 4
    assert "nonsense" in done.stderr
    done = program("-m", "demo", "--system-file", "missing.txt", "hi")
    assert done.returncode == 4
    done = program("-m", gemma_config(program.folder / "other", model_type="llama"), "hi")
    assert done.returncode == 4
    done = program("-m", "9b", "--offline", "--device-memory", "64GiB", "hi")
    assert done.returncode in (4, 5)  # 5 where this machine has too little memory


def test_exit_5_does_not_fit(program: Program) -> None:
    done = program("-m", "27b", "--preset", "exact", "--host-memory", "8GiB", "hi")
    assert done.returncode == 5
    assert "8.6 GB" in done.stderr or "free" in done.stderr


def test_exit_6_context(program: Program) -> None:
    done = program("-m", "demo", "-", stdin="word " * 3000)
    assert done.returncode == 6
    assert done.stdout == ""


@pytest.mark.parametrize("form", ["--quiet", "--jsonl"])
def test_exit_130_prints_and_marks_the_partial_answer(program: Program, form: str) -> None:
    # at this temperature the bundled model rambles
    words = ["-m", "demo", form, "--temperature", "20", "--seed", "3", "Hello"]
    errors = program.folder / "errors"
    reading, writing = os.pipe()
    with errors.open("wb") as stderr:
        pid = replace(program, before=HELD).start(*words, stdout=writing, stderr=stderr.fileno())
    os.close(writing)
    with open(reading, "rb", buffering=0) as stdout:
        first = stdout.read(200)
        os.kill(pid, signal.SIGINT)
        rest = stdout.readall()
    code = exit_code(pid)
    printed = (first + rest).decode()
    assert code == 130
    assert "Traceback" not in errors.read_text()
    assert printed.endswith("\n")
    if form == "--jsonl":
        end = json.loads(printed.splitlines()[-1])
        assert end["finish_reason"] == "interrupted"
        assert end["response"] == "".join(
            event["text"] for event in map(json.loads, printed.splitlines()) if event["event"] == "delta"
        )


STUCK = """
import sys, time
from pathlib import Path


class Stuck:
    def find_spec(name, path=None, target=None):
        if name == "transformers":
            Path(__file__).with_name("reached").touch()
            time.sleep(600)


sys.meta_path.insert(0, Stuck)
"""


def test_interrupted_while_loading_is_exit_130(program: Program) -> None:
    """An import has no end here: nothing waits for it."""
    process = subprocess.Popen(
        [*COMMAND, "-m", "demo", "--json", "Hello"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=program.folder,
        env=replace(program, before=STUCK).env,
    )
    while not (program.folder / "before" / "reached").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    validate(json.loads(errors), "error")
    assert "Traceback" not in errors
