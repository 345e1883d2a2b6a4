"""A full context through the program: old turns become a summary, where that is wanted."""

import re

from support.program import Program
from support.terminal import Terminal

WORDS = ["-m", "demo", "--temperature", "0", "--max-new-tokens", "8"]
SUMMARIZE = ["--on-overflow", "summarize"]
FILLER = "what happens then and why, " * 14


def test_a_full_context_is_summarized_in_the_chat_and_in_a_script(program: Program) -> None:
    questions = [f"Question {number}: {FILLER.strip()}" for number in range(10)]
    with Terminal(program, [*WORDS, *SUMMARIZE]) as terminal:
        terminal.wait("exact · /help")
        for question in questions:
            terminal.enter(question)
        told = re.findall(r"(\d+)\s+oldest\s+turns\s+being\s+summarized:\s+“Question\s+0", terminal.text)
        assert told
        assert int(told[0]) > 1
        assert terminal.text.count("being\nsummarized") + terminal.text.count("being summarized") < 10
        context = terminal.enter("/show context")
        assert "1. What have we said so far?" in context
        assert "Question 0" not in context
        assert "Question 9" in context
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    shown = program("history", "show", "1").stdout
    assert all(question in shown for question in questions)
    assert "What have we said so far?" not in shown
    full = program(*WORDS, "--session", "1", "Hello!")
    assert (full.returncode, full.stdout) == (6, "")
    done = program(*WORDS, *SUMMARIZE, "--session", "1", "Hello!")
    assert done.returncode == 0, done.stderr
    assert "oldest turns being summarized: “Question 0" in done.stderr
    assert done.stdout.strip()
