"""Several real processes on this CPU, started by torchrun, that answer as one would."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.models import DEMO
from support.patience import patience
from support.terminal import Terminal, answer_to

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# two likely tokens: the text repeats itself, so that guesses are made, and some of them are wrong
REPETITIVE = ("--temperature", "1", "--top-k", "2", "--seed", "1", "--max-new-tokens", "40")


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Path:
    """A small random Gemma 2 with the demo's tokenizer, and heads that two processes can share."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("even")
    config = AutoConfig.from_pretrained(
        DEMO, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=64, num_hidden_layers=4
    )
    config.layer_types, config.dtype = config.layer_types[:4], torch.float32
    config.max_position_embeddings = 8192  # an answer that fills it takes minutes
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, folder)
    return folder


def words_for(model, *more):
    return ["-m", str(model), "--preset", "exact", "--dtype", "float32", "--quiet", *more]


def start(program, *words, **streams):
    env = {**program.env, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "-m", "localgemma_cli", *words]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(command, cwd=program.folder, env=env, text=True, **pipes)


def test_two_processes_say_what_one_says(program, even):
    """Over more than one piece of prefill, past the window, and with guesses that are rolled back."""
    text = "The river runs past the old mill and on to the sea. " * 40
    words = words_for(even, *REPETITIVE, "--assistant", "lookup")
    alone = program(*words, stdin=text)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.strip()
    torchrun = start(program, *words, stdin=subprocess.PIPE)
    stdout, stderr = torchrun.communicate(text, timeout=600)
    assert torchrun.returncode == 0, stderr
    assert stdout == alone.stdout
    assert "Traceback" not in stderr


def test_what_cannot_be_split_ends_all_with_one_message(program):
    torchrun = start(program, "-m", "demo", "hello")
    stdout, stderr = torchrun.communicate(timeout=600)
    assert torchrun.returncode != 0
    assert stdout == ""
    assert stderr.count("localgemma: demo has 3 key-value heads, which 2 processes cannot share evenly.") == 1
    assert "exitcode  : 2" in stderr  # of rank 0, in torchrun's own report


def test_ctrl_c_prints_what_there_is_and_leaves_no_process(program, even):
    torchrun = start(program, *words_for(even, "--temperature", "0", "--max-new-tokens", "7000", "hello"))
    first = torchrun.stdout.read(1)
    processes = psutil.Process(torchrun.pid).children(recursive=True)
    assert len(processes) >= 2
    os.kill(torchrun.pid, signal.SIGINT)  # torchrun passes it on
    rest, errors = torchrun.communicate(timeout=600)
    assert "SIGKILL" not in errors  # by which torchrun ends what has not ended after 30 seconds
    assert (first + rest).endswith("\n")
    assert psutil.wait_procs(processes, timeout=600)[1] == []


def test_a_damaged_model_is_told_once(program, even, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(even, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    torchrun = start(program, *words_for(folder, "hello"))
    stdout, stderr = torchrun.communicate(timeout=600)
    assert stdout == ""
    assert stderr.count("cannot be loaded") == 1
    assert "exitcode  : 4" in stderr


def test_a_chat_in_a_terminal_where_ctrl_c_stops_an_answer_and_not_the_processes(program, even):
    words = [*words_for(even, "--temperature", "0", "--max-new-tokens", "8"), "--plain"]
    command = shlex.join([*TORCHRUN, "-m", "localgemma_cli", *words])
    program = program.with_environment(OMP_NUM_THREADS="1")
    shell = f"stty -a > before; {command}; code=$?; stty -a > after; echo left $code"
    with Terminal(program, shell=shell) as terminal:
        terminal.wait_for_prompt()
        terminal.wait("exact · /help")
        processes = psutil.Process(terminal.child.pid).children(recursive=True)
        assert len(processes) >= 3
        first, second = (terminal.enter(f"Hello, {number}.") for number in "12")
        assert len(first.split()) > 2
        assert len(second.split()) > 2
        terminal.enter("/set max-new-tokens 7000")
        terminal.type("Go on and on\r")
        terminal.wait(answer_to("Go on and on"))
        asked = time.monotonic()
        terminal.type("typed ahead \x03")
        terminal.wait(r"\[interrupted")
        assert time.monotonic() - asked < patience(5)
        terminal.wait("> typed ahead")
        terminal.type("\x03")
        terminal.wait_for_prompt()
        terminal.enter("/set max-new-tokens 8")
        terminal.enter("Once more")
        terminal.type("\x04")
        terminal.wait("left 0")
        assert psutil.wait_procs(processes, timeout=600)[1] == []
    assert "Traceback" not in terminal.text
    assert (program.folder / "before").read_text() == (program.folder / "after").read_text()
    assert program("history", "show", "1").stdout.count("## You") == 4
