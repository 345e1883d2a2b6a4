"""Every generation from its own layout on disk: greedy tokens of whole chats equal transformers', fp32."""

from pathlib import Path
from threading import Event as Cancel

import pytest
import torch
from support.families import configs, reference, write, write_llama, write_seeing

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import Finished
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.sampling import Sampling

NAMES = (*configs(), "gemma3-released", "gemma3-saved")
QUESTIONS = ("What is the memory preset, and what does it cost?", "And how fast is it?", "Thanks! " * 20)
GREEDY = Sampling(temperature=0, max_new_tokens=30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    written = {name: write(config, root / name) for name, config in configs().items()}
    seeing = {f"gemma3-{n}": write_seeing(root / n, released=n == "released") for n in ("released", "saved")}
    return {**written, **seeing, "llama": write_llama(root / "llama")}


def plan_of(folder: Path, preset: str, *, force: bool = False, **overrides: object) -> LoadPlan:
    facts = resolve(str(folder), revision=None, offline=True, force=force).facts
    return make_plan(facts, preset, probe("cpu"), Overrides(device="cpu", **overrides), load_presets())


def chat(backend: LocalBackend) -> list[tuple[list[int], list[int]]]:
    """Per turn the prompt's ids and the answer's."""
    messages: list[Message] = []
    turns = []
    for question in QUESTIONS:
        messages.append(Message("user", question))
        *_, finished = backend.stream(messages, GREEDY, Cancel())
        assert isinstance(finished, Finished)
        turns.append((backend._prompter.encode(messages), list(finished.token_ids or ())))
        messages.append(Message("assistant", "", finished.token_ids))
    return turns


def expected(folder: Path, prompt: list[int], stops: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = reference(folder).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, eos_token_id=stops
    )
    answer = output[0, len(prompt) :].tolist()
    return answer[:-1] if answer[-1] in stops else answer


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_a_chat_is_token_for_token_the_reference(folders: dict[str, Path], name: str, attention: str) -> None:
    backend = load_backend(
        plan_of(folders[name], "exact", dtype="float32", attention=attention), folders[name], ignore_progress
    )
    turns = chat(backend)
    stops = sorted(backend._stop_ids)
    for prompt, answer in turns:
        assert answer == expected(folders[name], prompt, stops)
    assert len(turns[-1][0]) > 100  # several windows of 24
    assert len({token for _, answer in turns for token in answer}) > 5  # not one token for ever


@pytest.mark.parametrize("compile", [True, False], ids=["static", "sliding"])
@pytest.mark.parametrize("name", ["gemma3", "gemma4-effective", "gemma4-dense"])
def test_other_caches_give_the_same_tokens(
    folders: dict[str, Path], name: str, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import localgemma_cli.backends.pytorch.backend as module

    full = load_backend(plan_of(folders[name], "exact", dtype="float32"), folders[name], ignore_progress)
    preset = "memory" if compile else "memory_extreme"
    plan = plan_of(folders[name], preset, dtype="float32", quantization="none", compile=compile or None)
    assert plan.cache == ("static" if compile else "sliding")
    make_step = module.make_step  # a static cache without a compiler, which takes a minute
    monkeypatch.setattr(module, "make_step", lambda model, _mode: make_step(model, "none"))
    assert chat(load_backend(plan, folders[name], ignore_progress)) == chat(full)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_as_they_are_loaded(folders: dict[str, Path], name: str) -> None:
    plan = plan_of(folders[name], "exact", dtype="float32")
    model = load_backend(plan, folders[name], ignore_progress)._model
    assert plan.model.architecture.parameters == sum(each.numel() for each in model.parameters())
    assert not [part for part, _ in model.named_modules() if "vision" in part]


def test_4_bits_read_the_text_part_under_its_own_names(folders: dict[str, Path]) -> None:
    plans = [plan_of(folders[name], "memory") for name in ("gemma3-released", "gemma3-saved")]
    assert all(plan.streamed for plan in plans)
    one, other = (
        chat(load_backend(plan, folders[name], ignore_progress))
        for plan, name in zip(plans, ("gemma3-released", "gemma3-saved"), strict=True)
    )
    assert one == other


def test_4_bits_of_gemma_4_go_through_the_library(folders: dict[str, Path]) -> None:
    plan = plan_of(folders["gemma4-effective"], "memory")
    assert not plan.streamed
    assert chat(load_backend(plan, folders["gemma4-effective"], ignore_progress))


def test_what_is_no_gemma_is_refused_and_can_be_forced(folders: dict[str, Path]) -> None:
    with pytest.raises(NotFoundError, match="LlamaForCausalLM") as caught:
        plan_of(folders["llama"], "exact")
    assert "--force" in caught.value.hint
    plan = plan_of(folders["llama"], "exact", force=True, dtype="float32")
    assert any("not a Gemma" in warning for warning in plan.warnings)
    backend = load_backend(plan, folders["llama"], ignore_progress)
    (prompt, answer), *_ = chat(backend)
    assert answer == expected(folders["llama"], prompt, sorted(backend._stop_ids))
    counted = sum(each.numel() for each in backend._model.parameters())
    assert plan.model.architecture.parameters == counted
