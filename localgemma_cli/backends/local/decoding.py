"""Prefill and decode: token ids in, one sampled id after the other out."""

from collections.abc import Callable, Iterator, Sequence
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from localgemma_cli.backends.local.kvcache import KVCache
from localgemma_cli.planning.memory import PREFILL_CHUNK
from localgemma_cli.sampling import Sampling

Step = Callable[[torch.Tensor, Cache], torch.Tensor]
Sampler = Callable[[torch.Tensor, torch.Tensor], int]


def forward(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Run `tokens` [1, n] on top of `cache`; logits of the last one, [1, vocabulary], float32."""
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def make_step(model: PreTrainedModel, compile_mode: str) -> Step:
    """The one-token step, compiled where the plan says so: one graph, a static cache, no recompilation."""

    def step(token: torch.Tensor, cache: Cache) -> torch.Tensor:
        return forward(model, token, cache)

    if compile_mode == "none":
        return step
    return torch.compile(step, mode=compile_mode, fullgraph=True, dynamic=False)


def make_sampler(sampling: Sampling, device: torch.device) -> Sampler:
    """(ids so far [1, n], logits [1, vocabulary]) -> next id, by transformers' processors in its order."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return lambda ids, logits: int(processors(ids, logits).argmax(dim=-1))
    processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(sampling.min_p))
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)

    def sample(ids: torch.Tensor, logits: torch.Tensor) -> int:
        probabilities = torch.softmax(processors(ids, logits), dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=generator))

    return sample


def prefill(
    model: PreTrainedModel, kv: KVCache, prompt: Sequence[int], device: torch.device, cancel: Cancel
) -> torch.Tensor | None:
    """Compute what of `prompt` is not in `kv`; the last token's logits, or None where `cancel` came first."""
    logits = None
    for start in range(len(kv.tokens), len(prompt), PREFILL_CHUNK):
        if cancel.is_set():
            return None
        chunk = prompt[start : start + PREFILL_CHUNK]
        with kv.appending(chunk) as cache:
            logits = forward(model, torch.tensor([chunk], device=device), cache)
    return logits


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    step: Step,
    kv: KVCache,
    prompt: Sequence[int],
    sampler: Sampler,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    cancel: Cancel,
) -> Iterator[int]:
    """Ids up to and including a stop id, at most `max_new_tokens`; on `cancel` ends between two tokens."""
    device: torch.device = model.device
    logits = prefill(model, kv, prompt, device, cancel)
    ids = torch.tensor([prompt], device=device)
    for count in range(1, max_new_tokens + 1):
        if logits is None or cancel.is_set():
            return
        token = sampler(ids, logits)
        yield token
        if token in stop_ids or count == max_new_tokens:
            return
        next_id = torch.tensor([[token]], device=device)
        ids = torch.cat([ids, next_id], dim=1)
        if cancel.is_set():
            return
        with kv.appending([token]) as cache:
            logits = step(next_id, cache)
