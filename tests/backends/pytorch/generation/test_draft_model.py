"""A small model's guesses: the larger model's own answer, token for token, in fewer of its forwards."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Cancel

import pytest
import torch
from support.decoding import generate
from support.models import DEMO, demo_fp32, own_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from localgemma_cli.backends.pytorch.backend import LoadOptions, LocalBackend, load_backend
from localgemma_cli.backends.pytorch.generation import decode as decoding
from localgemma_cli.backends.pytorch.generation.decode import make_step
from localgemma_cli.backends.pytorch.generation.draft_model import DraftModel
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import LONGEST, Guesses
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.conversation import Message
from localgemma_cli.errors import UsageError
from localgemma_cli.events import Finished
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.sampling import Sampling

GREEDY = Sampling(temperature=0)
QUESTION = "How do I get JSON out of localgemma in a script?"


class Pays:
    """A clock by which each round is quicker than those before it, so drafting pays on any machine."""

    def __init__(self) -> None:
        self._now, self._step = 0.0, 1.0

    def __call__(self) -> float:
        self._step *= 0.999
        self._now += self._step
        return self._now


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's first two layers, roughened, as a model of its own: often right, and often not."""
    folder = tmp_path_factory.mktemp("other")
    config = AutoConfig.from_pretrained(DEMO)
    config.num_hidden_layers, config.layer_types = 2, config.layer_types[:2]
    model = AutoModelForCausalLM.from_config(config)
    kept = model.load_state_dict(demo_fp32().state_dict(), strict=False)
    assert not kept.missing_keys
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.2 * parameter.std()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(DEMO / name, folder)
    return folder


def plan_for(folder: Path | str = "demo", *, preset: str = "exact", **overrides: object) -> LoadPlan:
    draft = resolve(str(folder), revision=None, offline=True).facts
    asked = Overrides(device="cpu", dtype="float32", draft=draft, **overrides)
    facts = resolve("demo", revision=None, offline=True).facts
    return make_plan(facts, preset, probe("cpu"), asked, load_presets())


def draft_of(
    folder: Path, clock: Callable[[], float], vocabulary: int = 2048, **overrides: object
) -> DraftModel:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    plan = plan_for(**overrides).draft
    assert plan is not None
    return DraftModel(plan, model, vocabulary, clock)


def answer(
    prompt: list[int],
    guesses: Guesses | None,
    sampling: Sampling = GREEDY,
    kind: str = "full",
    count: int = 60,
    kv: KVCache | None = None,
) -> list[int]:
    model = demo_fp32()
    kv = kv or KVCache(model.config, kind, 1024)
    kv.reuse(prompt)
    sampler = Sampler(sampling, model.device)
    step = make_step(model, "none")
    return list(generate(model, step, kv, prompt, sampler, frozenset(), count, Cancel(), guesses))


def prompt_of(text: str) -> list[int]:
    return Prompter(own_tokenizer()).encode((Message("user", text),))


class Counted:
    """What a draft proposed, and how much of it was right."""

    def __init__(self, draft: DraftModel) -> None:
        self._draft = draft.begin_answer(Cancel())
        self.proposed: list[int] = []
        self.right: list[int] = []

    def propose(self, history: Sequence[int]) -> list[int]:
        guess = self._draft.propose(history)
        if guess:
            self.proposed.append(len(guess))
        return guess

    def report(self, count: int, length: int) -> None:
        self.right.append(count)
        self._draft.report(count, length)


@pytest.mark.parametrize("kind", ["full", "static"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=4)], ids=["greedy", "seeded"])
def test_a_draft_does_not_change_a_single_token(other: Path, sampling: Sampling, kind: str) -> None:
    prompt = prompt_of(QUESTION)
    counted = Counted(draft_of(other, Pays()))
    assert answer(prompt, counted, sampling, kind) == answer(prompt, None, sampling, kind)
    assert len(counted.proposed) > 5
    assert (
        0 < sum(counted.right) < sum(counted.proposed[: len(counted.right)])
    )  # some right, some rolled back


def test_the_models_own_draft_is_right_every_time_and_saves_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = decoding.forward

    def counting(model: object, *arguments: object) -> torch.Tensor:
        calls.append(model)
        return plain(model, *arguments)  # type: ignore[arg-type]

    prompt = prompt_of(QUESTION)
    expected = answer(prompt, None, count=100)
    monkeypatch.setattr(decoding, "forward", counting)
    counted = Counted(draft_of(DEMO, Pays()))
    assert answer(prompt, counted, count=100) == expected
    assert counted.right == counted.proposed[: len(counted.right)]
    assert counted.proposed[:3] == [4, 6, LONGEST]
    assert calls.count(demo_fp32()) < 25


def test_after_a_wrong_guess_the_next_ones_are_those_of_a_fresh_reading() -> None:
    draft = draft_of(DEMO, Pays()).begin_answer(Cancel())
    history = prompt_of(QUESTION)
    for token in (300, 301, 302):
        assert draft.propose(history) == []
        history.append(token)
    for right in (1, 0, 2):
        guess = draft.propose(history)
        assert guess == answer(history, None, count=len(guess))
        history += [*guess[:right], 700 + right]


def test_guesses_become_fewer_while_they_are_wrong_and_more_while_they_are_right() -> None:
    draft = draft_of(DEMO, Pays())
    draft.begin_answer(Cancel())
    history = prompt_of(QUESTION)

    def proposed() -> int:
        history.append(300)
        return len(draft.propose(history))

    assert [proposed() for _ in range(4)] == [0, 0, 0, 4]
    draft.report(1, 0)
    assert proposed() == 3
    for _ in range(5):
        draft.report(0, 0)
    assert proposed() == 1
    draft.report(1, 0)
    assert proposed() == 3


def test_the_next_turn_reads_only_what_is_new(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = draft_of(other, Pays())
    read: list[int] = []
    plain = KVCache.appending

    def counting(kv: KVCache, tokens: Sequence[int]) -> object:
        if kv is draft._kv:
            read.append(len(tokens))
        return plain(kv, tokens)

    monkeypatch.setattr(KVCache, "appending", counting)
    kv = KVCache(demo_fp32().config, "full", 1024)
    history = prompt_of(QUESTION * 12)
    history += answer(history, draft.begin_answer(Cancel()), kv=kv, count=30)
    assert sum(read) > len(history) - 10
    read.clear()
    history += [500, 501, 502]
    expected = answer(history, None, count=30)
    assert answer(history, draft.begin_answer(Cancel()), kv=kv, count=30) == expected
    assert max(read) <= LONGEST + 4
    edited = [*history[:40], 600, 601, 602]
    assert answer(edited, draft.begin_answer(Cancel()), kv=kv) == answer(edited, None)


def test_a_draft_that_takes_longer_than_it_saves_falls_silent(other: Path) -> None:
    class Slow:
        """A round with guesses takes nine times as long as one without."""

        now, guessing = 0.0, False

        def __call__(self) -> float:
            self.now += 9.0 if self.guessing else 1.0
            return self.now

    clock = Slow()
    draft = draft_of(other, clock).begin_answer(Cancel())
    asked: list[bool] = []

    class Watched(Counted):
        def propose(self, history: Sequence[int]) -> list[int]:
            guess = super().propose(history)
            clock.guessing = bool(guess)
            asked.append(bool(guess))
            return guess

    prompt = prompt_of(QUESTION)
    watched = Watched(draft)
    assert answer(prompt, watched) == answer(prompt, None)
    assert asked[:12] == [False] * 3 + [True] * 8 + [False]
    assert not any(asked[12:])


def test_cancelling_ends_the_reading_of_a_long_prompt_between_two_chunks() -> None:
    cancel = Cancel()
    draft = draft_of(DEMO, Pays()).begin_answer(cancel)
    history = [2, *torch.randint(108, 1000, (900,), generator=torch.Generator().manual_seed(5)).tolist()]
    for length in range(300, 303):
        assert draft.propose(history[:length]) == []
    cancel.set()
    assert draft.propose(history) == []
    assert draft._kv.tokens == []
    again = draft.begin_answer(Cancel())
    guesses = [again.propose([*history, *range(500, 500 + more)]) for more in range(4)]
    assert [bool(guess) for guess in guesses] == [False] * 3 + [True]


def test_ids_that_the_small_model_lacks_end_its_guesses_and_it_makes_up_none() -> None:
    history = [2, *range(108, 138)]
    known, all_ = (draft_of(DEMO, Pays(), vocabulary=size).begin_answer(Cancel()) for size in (140, 2048))
    for more in range(3):
        assert known.propose([*history, *[120] * more]) == all_.propose([*history, *[120] * more]) == []
    history += [120] * 3
    assert max(all_.propose(history)) >= 140 > max(known.propose(history))
    assert known.propose([*history, 500]) == []


def test_nothing_is_drafted_past_the_small_models_context() -> None:
    draft = draft_of(DEMO, Pays(), context=40).begin_answer(Cancel())
    for length in (30, 31, 32):
        assert draft.propose(list(range(300, 300 + length))) == []
    assert len(draft.propose(list(range(300, 338)))) == 2
    assert draft.propose(list(range(300, 340))) == []


def test_a_whole_chat_with_an_assistant_is_the_chat_without(other: Path) -> None:
    def said(backend: LocalBackend) -> list[tuple[int, ...] | None]:
        history: tuple[Message, ...] = ()
        for question in (QUESTION, "And exact?"):
            history += (Message("user", question),)
            sampling = Sampling(temperature=0, max_new_tokens=60)
            *_, finished = backend.stream(history, sampling, Cancel())
            assert isinstance(finished, Finished)
            history += (Message("assistant", "", finished.token_ids),)
        return [message.token_ids for message in history if message.role == "assistant"]

    plan = plan_for(other)
    alone = make_plan(plan.model, "exact", probe("cpu"), Overrides(dtype="float32"), load_presets())
    assert said(load_backend(plan, DEMO, ignore_progress, LoadOptions(draft=other))) == said(
        load_backend(alone, DEMO, ignore_progress)
    )


def test_another_tokenizer_is_refused_before_any_weights_are_read(other: Path, tmp_path: Path) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(other, folder)
    (folder / "model.safetensors").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[1500:1502]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UsageError, match="their tokenizers differ") as caught:
        load_backend(plan_for(folder), DEMO, ignore_progress, LoadOptions(draft=folder))
    assert "--assistant lookup" in caught.value.hint
