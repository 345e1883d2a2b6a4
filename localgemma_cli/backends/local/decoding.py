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
from localgemma_cli.backends.local.speculation import Lookup
from localgemma_cli.planning.memory import PREFILL_CHUNK
from localgemma_cli.sampling import Sampling

Step = Callable[[torch.Tensor, Cache], torch.Tensor]
Sampler = Callable[[torch.Tensor, torch.Tensor], int]


def forward(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache, keep: int = 1) -> torch.Tensor:
    """Run `tokens` [1, n] on top of `cache`; logits of the last `keep`, [keep, vocabulary], float32."""
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep)
    logits: torch.Tensor = output.logits[0, -keep:].float()
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
    lookup: Lookup | None = None,
) -> Iterator[int]:
    """Ids up to and including a stop id, at most `max_new_tokens`; on `cancel` ends between two tokens."""
    device: torch.device = model.device
    history = list(prompt)
    guess: list[int] = []
    ids = torch.tensor([history], device=device)
    rows = prefill(model, kv, prompt, device, cancel)
    while rows is not None:
        for right, row in enumerate(rows):
            if cancel.is_set():
                return
            token = sampler(ids, row[None])
            yield token
            history.append(token)
            if token in stop_ids or len(history) == len(prompt) + max_new_tokens or cancel.is_set():
                return
            ids = torch.cat([ids, torch.tensor([[token]], device=device)], dim=1)
            if guess[right : right + 1] != [token]:
                break
        if lookup is not None:
            kv.keep(len(history) - 1)
            if guess:
                lookup.accepted(right, len(history))
            guess = lookup.propose(history)[: len(prompt) + max_new_tokens - len(history) - 1]
        with kv.appending([token, *guess]) as cache:
            fed = torch.tensor([[token, *guess]], device=device)
            rows = forward(model, fed, cache, len(guess) + 1) if guess else step(fed, cache)
