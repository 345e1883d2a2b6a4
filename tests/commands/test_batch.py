"""`localgemma batch`: rows to results, in order, on the demo."""

import json
import os
import random
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.batches import (
    WORDS,
    json_lines,
    questions,
    results_of,
    running,
    wait_for_lines,
    without_reuse,
)
from support.chat_server import ChatServer, error, sse
from support.program import COMMAND, Program
from support.schemas import validate

ROWS: list[object] = [
    {"id": "first", "prompt": "Who are you?"},
    {"prompt": "What is int4?", "max_new_tokens": 5},
    "not an object",
    {"id": 3, "system": "Be short.", "prompt": "What is NF4?", "label": "ignored"},
    {"prompt": "What is NF4?", "temperatur": 0.5},
    {"prompt": "What is NF4?", "top_p": 2},
    {"id": "first", "prompt": "Who are you?"},
    {"prompt": "word " * 9000},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "I am the demo."},
            {"role": "user", "content": "What is int4?"},
        ]
    },
    {"prompt": "How many?", "schema": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}},
    {"prompt": "How many?", "regex": "[a-z]{40}", "max_new_tokens": 2},
    {"prompt": "Yes or no?", "choice": ["yes", "no"]},
    {"prompt": "Who are you?", "logprobs": 1, "max_new_tokens": 2},
]
FAILED = {2: "usage", 4: "usage", 5: "usage", 6: "usage", 7: "context", 10: "incomplete"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def complete(shared: Program) -> list[dict[str, object]]:
    """The results of ROWS, from a file with a blank line in it."""
    lines = [json.dumps(each) for each in ROWS]
    (shared.folder / "rows.jsonl").write_text("\ufeff" + "\r\n".join([*lines[:2], "", *lines[2:]]))
    done = shared(*WORDS, "rows.jsonl", "-o", "rows.out")
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr == 'localgemma: 6 of 13 rows failed.\n  The results of these rows have an "error".\n'
    return results_of((shared.folder / "rows.out").read_text(encoding="utf-8"))


def test_every_row_has_its_result_in_order_and_a_bad_row_its_error(
    complete: list[dict[str, object]],
) -> None:
    assert [each["index"] for each in complete] == list(range(len(ROWS)))
    assert [each["id"] for each in complete] == ["first", None, None, 3, None, None, "first", *[None] * 6]
    kinds = {n: each["error"]["kind"] for n, each in enumerate(complete) if "error" in each}  # type: ignore[index]
    assert kinds == FAILED
    assert complete[4]["error"] == {
        "kind": "usage",
        "message": "Unknown field 'temperatur'.",
        "hint": "Did you mean temperature?",
    }
    assert complete[5]["error"]["message"].startswith("top_p must be")  # type: ignore[index]
    assert complete[6]["error"]["message"] == "Row 0 has the same id: 'first'."  # type: ignore[index]
    for n, each in enumerate(complete):
        validate(each, "batch")
        if n not in FAILED:
            assert each["response"]
            assert each["finish_reason"] == ("length" if n in (1, 12) else "stop")
            assert each["model"] == "demo"


def test_a_row_with_a_form_has_the_value_too(complete: list[dict[str, object]]) -> None:
    assert set(complete[9]["parsed"]) <= {1, 2}  # type: ignore[call-overload]
    assert json.loads(str(complete[9]["response"])) == complete[9]["parsed"]
    assert "partial" in complete[10]["error"]  # type: ignore[operator]
    assert complete[11]["parsed"] == complete[11]["response"]
    assert sum(complete[11]["choices"].values()) == pytest.approx(1)  # type: ignore[attr-defined]
    assert len(complete[12]["logprobs"]["content"]) == 2  # type: ignore[index]


def test_a_greedy_result_is_the_answer_of_a_single_call(
    shared: Program, complete: list[dict[str, object]]
) -> None:
    for n, words in ((0, ["Who are you?"]), (3, ["-s", "Be short.", "What is NF4?"])):
        alone = shared("-m", "demo", "--temperature", "0", "--no-save", "--json", *words)
        answer = json.loads(alone.stdout)
        assert answer["response"] == complete[n]["response"]
        ours = complete[n]["usage"]
        assert answer["usage"] | {"cached_prompt_tokens": 0} == ours | {"cached_prompt_tokens": 0}  # type: ignore[operator]


def test_nothing_is_overwritten_and_nothing_is_answered_twice(
    shared: Program, complete: list[dict[str, object]]
) -> None:
    before = (shared.folder / "rows.out").read_bytes()
    refused = shared(*WORDS, "rows.jsonl", "-o", "rows.out")
    assert refused.returncode == 2
    assert refused.stderr == (
        "localgemma: rows.out is not empty.\n  Add --resume to continue it, or choose another file with -o.\n"
    )
    again = shared(*WORDS, "rows.jsonl", "-o", "rows.out", "--resume")
    assert (again.returncode, again.stderr.count("failed")) == (9, 1)
    assert (shared.folder / "rows.out").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max-new-tokens", "3"], "Result 0 of rows.out is not that of row 0."),
        (["--dtype", "float64"], "--dtype"),
        (["--context", "100"], "rows.out was written by another model or plan: model demo and preset exact."),
    ],
)
def test_results_of_other_options_are_not_continued(
    shared: Program, complete: list[dict[str, object]], change: Sequence[str], message: str
) -> None:
    before = (shared.folder / "rows.out").read_bytes()
    done = shared(*WORDS, *change, "rows.jsonl", "-o", "rows.out", "--resume")
    assert done.returncode == 2
    assert message in done.stderr
    assert (shared.folder / "rows.out").read_bytes() == before


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_line_that_was_cut_off_is_written_again(
    shared: Program, complete: list[dict[str, object]], torn: int
) -> None:
    lines = (shared.folder / "rows.out").read_bytes().splitlines(keepends=True)
    out = shared.folder / f"torn-{torn}.out"
    out.write_bytes(b"".join(lines[:4]) + lines[4][:torn])
    done = shared(*WORDS, "rows.jsonl", "-o", out.name, "--resume")
    assert done.returncode == 9
    assert without_reuse(results_of(out.read_text(encoding="utf-8"))) == without_reuse(complete)


def test_a_run_that_is_killed_again_and_again_ends_with_every_row_once(program: Program) -> None:
    _kill_and_resume(program, rows=60, kills=4)


@pytest.mark.slow
def test_a_thousand_rows_and_twenty_kills(program: Program) -> None:
    _kill_and_resume(program, rows=1000, kills=20)


def _kill_and_resume(program: Program, rows: int, kills: int) -> None:
    """kill -9 at random moments; the results must be those of a run that nothing stopped."""
    chance = random.Random(15)
    listed: list[object] = [*questions(rows)]
    listed[rows // 2] = {"id": "bad", "prompt": 7}
    (program.folder / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in listed))
    undisturbed = program(*WORDS, "in.jsonl", "-o", "whole")
    assert undisturbed.returncode == 9
    out = program.folder / "out"
    for kill in range(kills):
        with running(program, *WORDS, "in.jsonl", "-o", "out", "--resume") as run:
            done = out.read_bytes().count(b"\n") if out.exists() else 0
            wait_for_lines(out, done + chance.randrange(1, 2 * (rows - done) // (kills - kill + 1)))
            os.kill(run.pid, signal.SIGKILL)
            assert run.wait() == -signal.SIGKILL
    assert 0 < out.read_bytes().count(b"\n") < rows
    last = program(*WORDS, "in.jsonl", "-o", "out", "--resume")
    assert (last.returncode, last.stdout) == (9, "")
    assert last.stderr.startswith(f"localgemma: 1 of {rows} rows failed.")
    results = results_of(out.read_text(encoding="utf-8"))
    assert [each["index"] for each in results] == list(range(rows))
    assert without_reuse(results) == without_reuse(results_of((program.folder / "whole").read_text()))


def test_in_a_pipe_a_row_is_answered_when_it_arrives_and_a_bad_one_too(program: Program) -> None:
    with running(program, *WORDS, "-") as run:
        for n, line in enumerate((b'{"prompt": "Who are you?"}', b"{", b'{"prompt": "What is int4?"}')):
            run.stdin.write(line + b"\n")
            result = json.loads(run.stdout.readline())
            assert (result["index"], "error" in result) == (n, n == 1)
        run.stdin.close()
        assert (run.stdout.read(), run.wait()) == (b"", 9)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_complete_and_the_message_resumes(
    program: Program, number: signal.Signals, code: int
) -> None:
    (program.folder / "in.jsonl").write_text(json_lines(questions(2000)))
    out = program.folder / "out file"
    with running(program, *WORDS, "in.jsonl", "-o", out.name) as run:
        wait_for_lines(out, 3)
        os.kill(run.pid, number)
        assert run.wait() == code
    count = len(results_of(out.read_text(encoding="utf-8")))
    first, hint = run.errors.read_text(encoding="utf-8").splitlines()
    assert first == f"localgemma: Stopped after {count} rows."
    assert hint.endswith("-o 'out file' --resume")


def test_a_pipe_that_nothing_reads_ends_the_batch_quietly(program: Program) -> None:
    with running(program, *WORDS, "-") as run:
        run.stdout.close()
        run.stdin.write(json_lines(questions(3)).encode())
        assert (run.wait(), run.errors.read_text()) == (0, "")


def test_a_full_disk_leaves_whole_results_that_can_be_resumed(program: Program) -> None:
    """A limit on the size of files cuts a write off in its middle, as a full disk does."""
    (program.folder / "in.jsonl").write_text(json_lines(questions(12)))
    words = (*WORDS, "in.jsonl", "-o", "out")
    full = program.shell(f"ulimit -f 2; {shlex.join([*COMMAND, *words])}")
    assert full.returncode == 1
    assert full.stderr.startswith("localgemma: Cannot write out: ")
    assert "--resume" in full.stderr
    kept = read_results(program)
    assert 0 < len(kept) < 12
    done = program(*words, "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert [each["index"] for each in read_results(program)] == list(range(12))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_reported(program: Program) -> None:
    (program.folder / "in.jsonl").write_text(json_lines(questions(1)))
    done = program(*WORDS, "in.jsonl", "-o", "/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("localgemma: Cannot write /dev/full: No space left on device.")


def test_a_server_that_fails_again_and_again_ends_the_run_and_its_rows_are_tried_again(
    program: Program,
) -> None:
    rows = [{"prompt": "one"}, {}, {"prompt": "two"}, *({"prompt": f"{n}"} for n in range(5))]
    (program.folder / "in.jsonl").write_text(json_lines(rows))
    with ChatServer() as server:
        words = ("batch", "--endpoint", server.url, "in.jsonl", "-o", "out")
        server.answers(sse("First"), error("rejected"))
        stopped = program(*words)
        assert stopped.returncode == 7
        assert "rejected" in stopped.stderr
        assert stopped.stderr.endswith("in.jsonl -o out --resume\n")
        kinds = [each.get("error", {}).get("kind") for each in read_results(program)]  # type: ignore[attr-defined]
        assert kinds == [None, "usage", "endpoint", "endpoint", "endpoint"]
        server.requests.clear()
        server.answers(sse("Again"))
        resumed = program(*words, "--resume")
        assert resumed.returncode == 9
        assert [each.body["messages"][0]["content"] for each in server.posts] == ["two", *"01234"]
        results = read_results(program)
        assert [each["index"] for each in results] == list(range(8))
        assert [each.get("response") for each in results] == ["First", None, *["Again"] * 6]


def read_results(program: Program) -> list[dict[str, object]]:
    return results_of((program.folder / "out").read_text(encoding="utf-8"))


def test_a_template_fills_the_columns_of_csv_and_its_beginning_is_computed_once(program: Program) -> None:
    (program.folder / "in.csv").write_text(
        'id,temperature,text\n1,31,"Who are\nyou?"\n2,too few\n3,hot,What is int4?\n', encoding="utf-8"
    )
    template = "Answer this question about the program in one short sentence: {text}"
    done = program(*WORDS, "in.csv", "--prompt-template", template)
    first, bad, last = results_of(done.stdout)
    assert done.returncode == 9
    assert [first["id"], bad["id"], last["id"]] == ["1", None, "3"]
    assert bad["error"]["message"] == "The row has 2 fields, and the header 3."  # type: ignore[index]
    assert first["usage"]["cached_prompt_tokens"] == 0  # type: ignore[index]
    head = json.loads(program("prompt", "-m", "demo", "--json", template.partition("{")[0]).stdout)["ids"]
    shared = len(head) - len(["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"])
    assert last["usage"]["cached_prompt_tokens"] >= shared  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.csv"], "The input has no column prompt, but: id, text."),
        (["in.csv", "--prompt-template", "{txt}"], "There is no field 'txt'."),
        (["in.csv", "--prompt-template", "text"], "--prompt-template has no field."),
        (["in.csv", "--prompt-template", "{text"], "--prompt-template has a brace"),
        (["missing.csv"], "Cannot read missing.csv: No such file or directory."),
        (["in.csv", "--prompt-template", "{text}", "-o", "."], "Cannot write .: Is a directory."),
        (["in.csv", "--resume"], "--resume needs a file."),
        (
            ["in.csv", "--prompt-template", "{text}", "-o", "notes", "--resume"],
            "Line 1 of notes is not a result",
        ),
        ([], "IN is missing."),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    shared: Program, words: Sequence[str], message: str
) -> None:
    (shared.folder / "in.csv").write_text("id,text\n1,Hello\n")
    (shared.folder / "notes").write_text("my notes, without a line end")
    done = shared("batch", "-m", "demo", *words)
    assert done.returncode in (2, 4)
    assert message in done.stderr
    assert (shared.folder / "notes").read_text() == "my notes, without a line end"


def test_two_runs_do_not_write_one_file(program: Program) -> None:
    (program.folder / "in.jsonl").write_text(json_lines(questions(1)))
    with running(program, *WORDS, "-", "-o", "out") as first:
        first.stdin.write(json_lines(questions(1)).encode())
        wait_for_lines(program.folder / "out", 1)
        second = program(*WORDS, "in.jsonl", "-o", "out", "--resume")
        assert second.returncode == 2
        assert "Another run is writing out." in second.stderr
        first.stdin.close()
        assert first.wait() == 0
