"""The chat's first lines, its bar, and `/model`, in the real program."""

from dataclasses import replace
from pathlib import Path

from support.checkpoints import add_tokenizer, tiny
from support.program import Program
from support.terminal import Terminal

DEMO = ["-m", "demo", "--temperature", "0"]


def checkpoint(folder: Path) -> Path:
    tiny().save_pretrained(folder)
    return add_tokenizer(folder)


def test_another_model_goes_on_with_the_conversation(program: Program) -> None:
    checkpoint(program.folder / "tiny")
    with Terminal(replace(program, cold=True), DEMO) as terminal:
        terminal.wait_for_prompt()
        assert "exact · /help" not in terminal.text  # it is loading
        assert terminal.text.startswith("Model demo, preset exact, on cpu.\n/help lists the commands; Ctrl-D")
        terminal.wait("exact · /help")
        terminal.enter("Hello, my name is Ada.")
        terminal.enter("/model nowhere")
        terminal.wait("Model not found: 'nowhere'")
        terminal.wait(r" demo · exact · \d+/1024 tokens")  # as before, without loading again
        terminal.enter("/set max-new-tokens 8")
        terminal.enter("/model ./tiny")
        terminal.enter("What do you say?", seconds=120)
        terminal.wait(r" \./tiny · exact · \d+/256 tokens")
        assert "./tiny" in terminal.enter("/model").split("\n")[1]
        assert "1. Hello, my name is Ada." in terminal.enter("/show context")
        terminal.enter("/model demo")
        terminal.enter("/undo")
        assert "Ada" in terminal.enter("What is my name?", seconds=120)
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_the_bar_with_a_long_path_and_vi_keys(program: Program) -> None:
    folder = checkpoint(program.folder / ("a-very-long-name-of-a-folder" * 4) / "tiny")
    with Terminal(program, ["-m", str(folder), "-q", "--vi", "--max-new-tokens", "4"]) as terminal:
        terminal.wait(r"\n …\S*/tiny · exact · insert · /help")
        assert "Model" not in terminal.text
        assert "Ctrl-D" not in terminal.text
        terminal.enter("Hello")
        terminal.wait(r"\n …\S*/tiny · exact · insert · \d+/256 tokens · \d")
        terminal.type("\x1b")
        terminal.wait(r"\n …\S*/tiny · exact · normal · \d+/256 tokens · \d")
