"""Whole chats through the local backend."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event as Cancel

import pytest
import torch
from support.models import DEMO, demo_fp32, demo_tokenizer, own_tokenizer

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.chat.turn import TurnSettings, run_turn
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import ContextOverflowError, NotFoundError
from localgemma_cli.events import Delta, Finished, Reading
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.render.base import Answer
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.sampling import OnOverflow, Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=60)
QUESTIONS = [
    "Hello! My name is Ada.",
    "What does the memory preset do?",
    "How do I pipe a prompt into localgemma?",
    "Which preset is the smallest?",
    "What happens when the context is full?",
    "How do I get JSON?",
    "What should I do about a gated model?",
    "What is my name?",
]


class Silent:
    def delta(self, text: str) -> None: ...

    def finish(self, answer: Answer) -> None: ...

    def abort(self) -> None: ...


def backend_for(*, preset: str = "exact", folder: Path = DEMO, **overrides: object) -> LocalBackend:
    facts = resolve("demo", revision=None, offline=True).facts
    plan = make_plan(facts, preset, probe("cpu"), Overrides(device="cpu", **overrides), load_presets())
    return load_backend(plan, folder, ignore_progress)


@pytest.fixture(scope="module")
def fp32() -> LocalBackend:
    return backend_for(dtype="float32")


def settings(sampling: Sampling = GREEDY, on_overflow: OnOverflow = OnOverflow.ERROR) -> TurnSettings:
    return TurnSettings(sampling, on_overflow, lambda _turns, _how: None)


def reference(messages: tuple[Message, ...], count: int) -> list[int]:
    """transformers' `generate` on the whole history from scratch, without the stop token."""
    prompter = Prompter(own_tokenizer())
    ids = torch.tensor([prompter.encode(messages)])
    stops = sorted(prompter.stop_ids)
    output = demo_fp32().generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=stops
    )
    answer = output[0, ids.shape[1] :].tolist()
    return answer[:-1] if answer[-1] in stops else answer


@pytest.mark.parametrize("system", [None, "You are a pirate."])
def test_a_chat_of_eight_turns_is_token_for_token_the_reference(
    fp32: LocalBackend, system: str | None
) -> None:
    conversation = Conversation(system)
    for turn, question in enumerate(QUESTIONS):
        messages = conversation.messages(question)
        conversation, answer = run_turn(fp32, conversation, question, settings(), Silent(), Cancel())
        assert list(answer.finished.token_ids or ()) == reference(messages, 60), f"turn {turn}"
        usage = answer.finished.usage
        new = usage.prompt_tokens - usage.cached_prompt_tokens
        assert new < usage.prompt_tokens or turn == 0
        # only the question, the marks around it, and the turn end that was sampled but never fed
        assert new <= len(demo_tokenizer().encode(question)) + 12 or turn == 0
    assert usage.prompt_tokens > 2 * demo_fp32().config.sliding_window


def test_the_text_is_that_of_the_tokens(fp32: LocalBackend) -> None:
    _, answer = run_turn(fp32, Conversation(), QUESTIONS[1], settings(), Silent(), Cancel())
    assert answer.text == demo_tokenizer().decode(answer.finished.token_ids)


def test_an_interrupted_answer_stays_in_the_conversation_and_the_chat_goes_on(fp32: LocalBackend) -> None:
    cancel = Cancel()

    class StopsAfterThree(Silent):
        count = 0

        def delta(self, text: str) -> None:
            self.count += 1
            if self.count == 3:
                cancel.set()

    conversation, answer = run_turn(
        fp32, Conversation(), "What does the memory preset do?", settings(), StopsAfterThree(), cancel
    )
    assert answer.finished.finish_reason == "interrupted"
    assert answer.text
    assert conversation.turns[-1].answer.content == answer.text
    messages = conversation.messages("And exact?")
    conversation, after = run_turn(fp32, conversation, "And exact?", settings(), Silent(), Cancel())
    assert list(after.finished.token_ids or ()) == reference(messages, 60)


def test_length_is_a_finish_reason(fp32: LocalBackend) -> None:
    few = Sampling(temperature=0, max_new_tokens=3)
    _, answer = run_turn(fp32, Conversation(), QUESTIONS[1], settings(few), Silent(), Cancel())
    assert answer.finished.finish_reason == "length"
    assert answer.finished.usage.completion_tokens == 3


def test_a_seed_repeats_the_answer(fp32: LocalBackend) -> None:
    def say(seed: int) -> str:
        sampling = Sampling(temperature=1.5, seed=seed, max_new_tokens=30)
        return run_turn(fp32, Conversation(), "Tell me a joke.", settings(sampling), Silent(), Cancel())[
            1
        ].text

    assert say(7) == say(7)
    assert len({say(seed) for seed in range(6)}) > 1


def test_a_full_context_is_an_error_or_drops_the_oldest_turns_but_never_the_system_text() -> None:
    backend = backend_for(context=256)
    conversation = Conversation("Answer in one word.")
    dropped: list[Turn] = []
    trimming = TurnSettings(GREEDY, OnOverflow.TRIM, lambda turns, _how: dropped.extend(turns))
    for number in range(9):
        question = f"My number is {number}. " + "Please keep it in mind for later. " * 3
        conversation, answer = run_turn(backend, conversation, question, trimming, Silent(), Cancel())
    assert [turn.question.content.split(".")[0] for turn in dropped] == [
        f"My number is {number}" for number in range(len(dropped))
    ]
    assert dropped
    assert answer.finished.usage.prompt_tokens + answer.finished.usage.completion_tokens <= 256
    assert conversation.system == "Answer in one word."
    assert conversation.turns[-1].question.content.startswith("My number is 8")
    assert not conversation.turns[0].question.content.startswith("My number is 0")
    with pytest.raises(ContextOverflowError):
        run_turn(backend, conversation, "x " * 60, settings(), Silent(), Cancel())
    with pytest.raises(
        ContextOverflowError
    ):  # a single question that is too long cannot be helped by trimming
        run_turn(backend, conversation, "word " * 400, trimming, Silent(), Cancel())


def test_an_error_commits_nothing(fp32: LocalBackend) -> None:
    class Broken(Silent):
        aborted = False

        def delta(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def abort(self) -> None:
            self.aborted = True

    renderer = Broken()
    with pytest.raises(OSError, match="No space"):
        run_turn(fp32, Conversation(), "Hello", settings(), renderer, Cancel())
    assert renderer.aborted


def test_a_stream_ends_with_one_finished(fp32: LocalBackend) -> None:
    events = list(fp32.stream(Conversation().messages("Hello"), GREEDY, Cancel()))
    assert [type(event) for event in events] == [Reading, *[Delta] * (len(events) - 2), Finished]


@pytest.mark.parametrize("preset", ["speed", "memory", "memory_extreme"])
def test_every_preset_answers_on_a_cpu(preset: str) -> None:
    backend = backend_for(preset=preset)
    _, answer = run_turn(
        backend, Conversation(), "What does the memory preset do?", settings(), Silent(), Cancel()
    )
    assert "4-bit" in answer.text or "NF4" in answer.text


def test_quantized_layers_are_really_quantized() -> None:
    names = {type(module).__name__ for module in backend_for(preset="memory")._model.modules()}
    assert names & {"GroupedLinear", "InterleavedNF4", "PlainNF4"}, names
    int8 = backend_for(preset="memory", quantization="int8")._model
    assert "GroupedLinear" in {type(module).__name__ for module in int8.modules()}


@pytest.mark.parametrize(
    "damage", ["truncated", "missing tensors", "no weights", "pickle only", "no tokenizer"]
)
def test_a_damaged_folder_is_refused_with_its_reason(tmp_path: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif damage == "missing tensors":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "no weights":
        weights.unlink()
    elif damage == "pickle only":
        torch.save({}, folder / "pytorch_model.bin")
        weights.unlink()
    else:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError) as caught:
        backend_for(folder=folder)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_tiny_model_computes_on_one_core_in_every_thread() -> None:
    """On a machine that others use, each product of several threads waits for one that is not running."""
    program = """
from threading import Thread
import torch
from support.models import DEMO
from localgemma_cli.backends.pytorch.backend import load_backend
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.progress import ignore_progress

facts = resolve(str(DEMO), revision=None, offline=True).facts
plan = make_plan(facts, "exact", probe("cpu"), Overrides(), load_presets())
for run in (lambda: load_backend(plan, DEMO, ignore_progress), lambda: print(torch.get_num_threads())):
    thread = Thread(target=run)
    thread.start()
    thread.join()
print(torch.get_num_threads())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1"], done.stderr
