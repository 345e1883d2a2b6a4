"""The chat's session with the real demo model, in this process: going on, taking back, trimming, saving."""

from dataclasses import replace
from pathlib import Path
from threading import Event as Cancel

import pytest
from support.chat import GREEDY, Chat

from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.chat.slash.outcome import AskQuestion
from localgemma_cli.errors import ContextOverflowError, InterruptedAnswer, UsageError
from localgemma_cli.sampling import Mode, OnOverflow
from localgemma_cli.sessions.store import Store, default_path

QUESTION = "What does the memory preset do?"
LONG = "What happens when the context is full?"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "conversations.sqlite")


def test_going_on_gives_the_answer_that_nobody_interrupted(store: Store) -> None:
    whole = Chat()
    whole.ask(QUESTION)
    chat = Chat(store)
    chat.ask(QUESTION, stop_after=4)
    assert chat.turns[0].finish_reason == "interrupted"
    chat.go_on(stop_after=3)
    chat.go_on()
    assert chat.turns[0].answer == whole.turns[0].answer
    assert chat.turns[0].finish_reason == "stop"
    saved = store.conversation(1, "demo").turns
    assert [turn.answer for turn in saved] == [whole.turns[0].answer]
    assert store.search("memory")[0][2] == whole.turns[0].answer.content
    with pytest.raises(UsageError, match="last answer is complete"):
        chat.go_on()


def test_going_on_after_the_longest_length_and_in_another_process(store: Store) -> None:
    whole = Chat()
    whole.ask(QUESTION)
    chat = Chat(store)
    chat.ask(QUESTION, replace(GREEDY, max_new_tokens=5))
    assert chat.turns[0].finish_reason == "length"
    other = Chat(store)
    other.do("/load 1")
    other.go_on()
    assert other.turns[0].answer == whole.turns[0].answer


def test_half_a_character_is_not_kept(store: Store) -> None:
    """At this temperature some tokens are single bytes of a character, and some cuts are within one."""
    cut = 0
    for seed in (1, 4, 8):
        wild = replace(GREEDY, temperature=20, seed=seed, max_new_tokens=25)
        whole = Chat()
        whole.ask("Hi", wild)
        ids = whole.turns[0].answer.token_ids
        assert ids is not None
        for length in range(1, 25):
            chat = Chat()
            answer = chat.ask("Hi", replace(wild, max_new_tokens=length))
            assert whole.turns[0].answer.content.startswith(answer.text)
            kept = answer.finished.token_ids
            assert kept is not None
            assert ids[: len(kept)] == kept
            assert length - len(kept) < 4
            cut += length - len(kept)
    assert cut


def test_only_what_differs_is_read_again() -> None:
    chat = Chat()
    chat.ask("Hello, my name is Ada.")
    chat.ask(QUESTION)
    new = chat.read()
    used = chat.session.last.finished.usage.prompt_tokens if chat.session.last else 0
    outcome = chat.do("/retry temperature=0.5 seed=1")
    assert isinstance(outcome, AskQuestion)
    chat.ask(outcome.question, outcome.sampling)
    assert len(chat.turns) == 2
    assert chat.read() == 1  # the same prompt: only its last token gives logits anew
    chat.do("/undo")
    assert "removed 1 turn, from “What does" in chat.said[-1]
    chat.ask("What is my name?")
    assert "Ada" in chat.turns[-1].answer.content
    assert chat.read() < new + 4 < (used or 0)
    chat.do("/undo 2")
    chat.ask("Hello!")
    assert chat.read() <= 12


def test_what_cannot_be_taken_back_is_said() -> None:
    chat = Chat()
    for line in ("/undo", "/retry", "/edit", "/copy"):
        with pytest.raises(UsageError, match="The conversation is empty"):
            chat.do(line)
    chat.ask("Hello!")
    for line in ("/undo 2", "/edit 9", "/copy 2"):
        with pytest.raises(UsageError, match="only 1 turn"):
            chat.do(line)
    for line in ("/undo x", "/edit 0", "/copy -1", "/undo 1 2"):
        with pytest.raises(UsageError, match=r"Usage: /\w+ \[N\]"):
            chat.do(line)
    for line in ("/new x", "/exit now", "/stats all", "/help me"):
        with pytest.raises(UsageError, match="no argument"):
            chat.do(line)


def test_an_edited_question_takes_the_place_of_all_after_it(store: Store) -> None:
    chat = Chat(store)
    for question in ("Hello!", "What is 9b?", QUESTION):
        chat.ask(question)
    chat.do("/edit 2")
    chat.ask("What is 2b?")
    questions = ["Hello!", "What is 2b?"]
    assert [turn.question.content for turn in chat.turns] == questions
    assert [turn.question.content for turn in store.conversation(1, "demo").turns] == questions


def test_an_error_leaves_the_conversation_and_its_file_as_they_were(store: Store) -> None:
    chat = Chat(store)
    chat.ask("Hello!")
    chat.session.start_replacing(1)
    (store._path.parent / "binary").write_bytes(b"a\0b")
    with pytest.raises(UsageError):
        chat.ask(f"See @{store._path.parent}/binary")
    chat.session.settings = replace(chat.session.settings, on_overflow=OnOverflow.ERROR)
    with pytest.raises(ContextOverflowError, match="tokens"):
        chat.ask("word " * 3000)
    for turns in (chat.turns, store.conversation(1, "demo").turns):
        assert [turn.question.content for turn in turns] == ["Hello!"]


def test_files_are_sent_once_and_their_size_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Mail @home.txt, and @ada/x\n")
    (tmp_path / "more.txt").write_text("More.\n")
    chat = Chat()
    chat.do("/file more.txt")
    assert "attached to your next message: more.txt" in chat.said[-1]
    chat.ask("What is in @notes.txt and @gone.txt?")
    told = "\n".join(chat.said)
    assert "file not found: gone.txt" in told
    sizes = [line for line in chat.said if line.startswith("[with ")]
    assert len(sizes) == 2
    question = chat.turns[0].question.content
    assert question.startswith("File more.txt:\n```\nMore.\n```\n\nFile notes.txt:\n```\nMail")
    outcome = chat.do("/retry")
    assert isinstance(outcome, AskQuestion)
    chat.said.clear()
    chat.ask(outcome.question)
    assert chat.turns[0].question.content == question
    assert not any("notes" in line for line in chat.said)
    chat.do("/file more.txt")
    chat.do("/file -")
    chat.ask("Hello!")
    assert chat.turns[-1].question.content == "Hello!"


def test_what_is_saved_on_demand_is_that_conversation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    chat = Chat()
    chat.session.recorder = SessionRecorder(None, "demo", chat.failures.append, asked_only=True)
    for question in ("Hello!", "What is 9b?", QUESTION):
        chat.ask(question)
    assert not default_path().exists()
    chat.do("/save mine")
    chat.session.summarize(chat.backend, Cancel())
    chat.ask("What is 2b?")
    chat.do("/new")
    chat.ask("Hello again!")
    store = Store(default_path())
    assert sorted(len(store.conversation(id, "demo").turns) for id in (1, 2)) == [3, 3]
    assert store.search("again") == []
    other = Chat()
    other.session.recorder = SessionRecorder(None, "demo", other.failures.append, asked_only=True)
    other.do("/load mine")
    other.session.summarize(other.backend, Cancel())
    other.do("/save shorter")
    shorter = [turn.question.content for turn in store.conversation(store.find("shorter"), "demo").turns]
    assert shorter == ["What have we said so far?", QUESTION]
    assert len(store.conversation(store.find("mine"), "demo").turns) == 3


def fill(chat: Chat, count: int) -> list[str]:
    """Questions with a number of their own, some hundred tokens each."""
    questions = [f"Question {number}: {'what happens then and why, ' * 14}?" for number in range(count)]
    for question in questions:
        chat.ask(question, replace(GREEDY, max_new_tokens=8))
    return questions


def test_a_full_context_drops_the_oldest_turns_and_says_which() -> None:
    chat = Chat()
    questions = fill(chat, 12)
    gone = [question for turns, how in chat.trimmed for question in turns if how == "dropped"]
    assert gone == questions[: len(gone)]
    assert gone
    assert [turn.question.content for turn in chat.turns] == questions[len(gone) :]


def test_undo_counts_what_is_on_the_screen(store: Store) -> None:
    chat = Chat(store)
    questions = fill(chat, 12)
    assert len(chat.turns) < 12
    with pytest.raises(UsageError, match="only 12 turns"):
        chat.do("/undo 13")
    chat.do("/undo 2")
    chat.do("/undo 8")
    assert f"removed 8 turns, from “{questions[2][:30]}" in chat.said[-1]
    for turns in (chat.turns, store.conversation(1, "demo").turns):
        assert [turn.question.content for turn in turns] == questions[:2]
    chat.ask("What is 9b?")
    chat.session.summarize(chat.backend, Cancel())
    assert len(chat.turns) == 2
    with pytest.raises(UsageError, match="no longer in the context"):
        chat.do("/edit 2")
    chat.do("/undo 2")
    assert "removed 2 turns, from “Question 1" in chat.said[-1]
    assert [turn.question.content for turn in chat.turns] == questions[:1]
    chat.ask("What is 2b?")
    saved = store.conversation(chat.session.recorder.session or 0, "demo").turns
    assert [turn.question.content for turn in saved] == [questions[0], "What is 2b?"]
    assert len(store.conversation(1, "demo").turns) == 3  # before the summary: they stay saved
    chat.do("/undo 2")
    with pytest.raises(UsageError, match="The conversation is empty"):
        chat.do("/undo")


def test_a_full_context_is_summarized_where_that_is_wanted(store: Store) -> None:
    chat = Chat(store)
    chat.session.settings = replace(chat.session.settings, on_overflow=OnOverflow.SUMMARIZE)
    questions = fill(chat, 12)
    summarized = [turns for turns, how in chat.trimmed if how == "being summarized"]
    assert summarized[0] == questions[: len(summarized[0])]
    assert len(summarized[0]) > 1
    assert chat.turns[0].question.content == "What have we said so far?"
    assert [turn.question.content for turn in store.conversation(1, "demo").turns] == questions


def test_a_summary_takes_the_place_of_old_turns_and_the_mode_stays(store: Store) -> None:
    chat = Chat(store, system="Be kind.", mode=Mode.FACTUAL)
    for question in ("Hello!", "What is 9b?", QUESTION):
        chat.ask(question)
    system = chat.session.conversation.system
    assert system is not None
    assert "factual" in system
    stopped = Cancel()
    stopped.set()
    with pytest.raises(InterruptedAnswer):
        chat.session.summarize(chat.backend, stopped)
    assert len(chat.turns) == 3
    assert chat.session.summarize(chat.backend, Cancel()) == 2
    assert [turn.question.content for turn in chat.turns] == ["What have we said so far?", QUESTION]
    assert chat.session.conversation.system == system
    assert len(store.conversation(1, "demo").turns) == 3
    chat.do("/fork")
    assert chat.session.conversation.system == system
    chat.ask("Hello again!")
    lengths = [len(store.conversation(session, "demo").turns) for session in (1, 2, 3)]
    assert lengths == [3, 2, 3]


def test_show_context_adds_up_to_what_is_used() -> None:
    chat = Chat(system="Answer in capital letters.")
    chat.ask("Hello!")
    chat.ask("What is 9b?")
    chat.do("/show context")
    rows = {line.split()[0]: int(line[36:43]) for line in chat.said[-1].splitlines()[:-1]}
    assert list(rows) == ["system", "1.", "2.", "free"]
    assert sum(rows.values()) == chat.backend.context_length
    assert chat.session.last is not None
    usage = chat.session.last.finished.usage
    assert (
        sum(rows.values()) - rows["free"] == (usage.prompt_tokens or 0) + (usage.completion_tokens or 0) - 1
    )
