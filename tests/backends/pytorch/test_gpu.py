"""What only a CUDA device can show: graphs give eager's tokens, reading late changes nothing."""

from threading import Event as Cancel

import pytest
import torch
from support.decoding import generate
from support.models import DEMO, demo_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.generation.cuda_graph import RecordedStep, Step, unrecorded
from localgemma_cli.backends.pytorch.generation.decode import make_step
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.sampling import Sampling

pytestmark = pytest.mark.gpu
CONTEXT = 1024
GREEDY = Sampling(temperature=0)
SEEDED = Sampling(temperature=1.2, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=3)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        DEMO, dtype=torch.bfloat16, attn_implementation="eager", device_map={"": "cuda"}
    ).eval()


def chat(
    model: PreTrainedModel, step: Step, sampling: Sampling = GREEDY, lag: bool = True
) -> list[list[int]]:
    """Four turns that grow past the first length of a static cache, and back."""
    kv, said, answers = KVCache(model.config, "static", CONTEXT), demo_tokenizer().encode("Hello!"), []
    for question in ("What does the memory preset do? ", "And exact? " * 20, "x " * 180, "Thanks."):
        said += demo_tokenizer().encode(question)
        kv.reuse(said)
        sampler = Sampler(sampling, model.device)
        tokens = generate(model, step, kv, said, sampler, frozenset(), 60, Cancel(), lag=lag)
        answers.append(list(tokens))
        assert int(kv.cache.layers[-1].cumulative_length) == len(kv.tokens)
        said += answers[-1]
    return answers


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_graph_gives_the_tokens_of_the_step_that_it_recorded(
    model: PreTrainedModel, sampling: Sampling
) -> None:
    graph = make_step(model, "graph")
    assert isinstance(graph, RecordedStep)
    answers = chat(model, graph, sampling)
    assert graph._record is not unrecorded  # it was no silent fall-back
    assert answers == chat(model, make_step(model, "none"), sampling)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_reading_late_changes_no_token(model: PreTrainedModel, sampling: Sampling) -> None:
    step = make_step(model, "graph")
    assert chat(model, step, sampling, lag=True) == chat(model, step, sampling, lag=False)


def test_no_step_waits_for_the_host(model: PreTrainedModel) -> None:
    """Beyond the id that is read: synchronising operations are errors in the loop."""
    step, kv, prompt = make_step(model, "graph"), KVCache(model.config, "static", CONTEXT), [2, 300, 301]
    for _ in range(2):  # the first time the graph is recorded, which may wait
        kv.reuse(prompt)
        tokens = generate(model, step, kv, prompt, Sampler(SEEDED, model.device), frozenset(), 40, Cancel())
        taken = [next(tokens) for _ in range(3)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken += [next(tokens) for _ in range(30)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        tokens.close()
    assert len(taken) == 33


@pytest.mark.timeout(1200)
def test_speed_compiles_behind_the_first_answer_and_is_recorded_after_it(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    step = make_step(model, "reduce-overhead")
    assert isinstance(step, RecordedStep)
    first = chat(model, step)
    step.wait()
    chat(model, step)
    step.wait()
    compiled = chat(model, step)
    assert step._recording is not None
    assert step._recording.step is not step._plain
    assert not caplog.records
    assert len(compiled) == len(first)
    assert compiled[0][:5] == first[0][:5]  # rounding may part them later: compiled kernels are not eager's
