"""The decoding step of a dense Gemma 1, 2 or 3 in bfloat16 on a CPU, with C functions between its products.

Numbers are rounded where transformers rounds them, so logits differ from its own only where sums in float32,
in another order, round to the other side. A step can have several rows, which read the weights once: the next
tokens of several texts, or guessed tokens of one. A row's logits are the same bits for any number of rows.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from localgemma_cli.backends.pytorch.generation.cpu_step_calls import StepCalls, reads_once
from localgemma_cli.backends.pytorch.generation.cuda_graph import Step
from localgemma_cli.backends.pytorch.generation.kv_cache import GrowingLayer, Int8Layer, WholeLayer
from localgemma_cli.backends.pytorch.kernels.step import CachedTokens, StepFunctions
from localgemma_cli.errors import first_line

MOST_ROWS = 8

_ROTATIONS = 256  # positions whose cosines and sines are computed together
_TABLES = 4 * MOST_ROWS
_GROUP = 64  # the products round a row up to this many numbers
_log = logging.getLogger(__name__)


class CpuStep:
    """Computes the logits [n, vocabulary] in float32 of tokens [1, n] after those in a cache.

    `plain` is the step that it replaces, and falls back to.
    """

    def __init__(self, model: PreTrainedModel, functions: StepFunctions, plain: Step) -> None:
        self._model, self._functions, self._plain = model, functions, plain
        self._decoder: Any = model.model
        self._rotations = _Rotations(self._decoder.rotary_emb)
        self._scratch = torch.empty(0)
        self._threads = torch.get_num_threads()
        self._most = MOST_ROWS if reads_once(model) else 1
        self._calls = {1: StepCalls(model, functions, 1)}  # by the number of rows

    @property
    def rows(self) -> int:
        """How many rows a step can have that read the weights once; 1 after a failure."""
        return self._most if self._functions else 1

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """The tokens follow one another."""
        logits = self._try(tokens, [cache])
        return self._plain(tokens, cache) if logits is None else logits

    def step_rows(self, tokens: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Compute the logits [n, vocabulary] of one token after each of n caches."""
        logits = self._try(torch.tensor([tokens]), caches)
        if logits is None:
            pairs = zip(tokens, caches, strict=True)
            logits = torch.cat([self._plain(torch.tensor([[token]]), cache) for token, cache in pairs])
        return logits

    def _try(self, tokens: Tensor, caches: Sequence[Cache]) -> Tensor | None:
        """The logits of tokens [1, n], one for each of n caches or all for one; None where `plain` has to."""
        many = tokens.shape[1] > self.rows
        if many or not self._functions or not all(_is_supported(each) for each in caches):
            return None
        try:
            return self._run(tokens, caches)
        except Exception as error:  # the caches are as before: their lengths change last
            self._functions = {}
            _log.warning(
                "localgemma: the fast decoding step failed, continuing without it (slower): %s",
                first_line(error),
            )
        return None

    def _run(self, tokens: Tensor, caches: Sequence[Cache]) -> Tensor:
        rows, each = tokens.shape[1], tokens.shape[1] // len(caches)
        calls = self._bind(rows)
        calls.state.copy_(self._decoder.embed_tokens(tokens)[0])
        self._rotations.trim()
        scratch = self._reserve(rows, max(_capacity(cache, each) for cache in caches))
        attend = self._functions["attend_rows"]
        for layer, kept in zip(
            calls.layers, zip(*(cache.layers for cache in caches), strict=True), strict=True
        ):
            for one in kept:
                one.make_room(each)
            for row, place in enumerate(layer.tokens):
                position = _locate(kept[row // each], row % each, place)
                place.scores, place.numbers = scratch[row]
                place.cosines, place.sines = self._rotations.at(position, layer.kind)
            for call in layer.before:
                call()
            attend(self._threads, rows, layer.shape, layer.tokens)
            for call in layer.after:
                call()
        for call in calls.last:
            call()
        for cache in caches:
            for one in cache.layers:
                one.length += each
        return self._capped(calls.logits).float()

    def _bind(self, rows: int) -> StepCalls:
        if rows not in self._calls:
            self._calls[rows] = StepCalls(self._model, self._functions, rows)
        return self._calls[rows]

    def _capped(self, logits: Tensor) -> Tensor:
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _reserve(self, rows: int, tokens: int) -> Sequence[tuple[int, int]]:
        """The addresses of scratch memory for the attention of each row over so many tokens."""
        config = self._model.config
        size = config.num_attention_heads * (max(tokens, config.head_dim) + _GROUP)
        if 2 * rows * size > len(self._scratch):
            self._scratch = torch.empty(2 * rows * size)
        first, apart = self._scratch.data_ptr(), size * self._scratch.element_size()
        return [(first + 2 * row * apart, first + (2 * row + 1) * apart) for row in range(rows)]


class _Rotations:
    """Cosines and sines from the model's own module, for some positions at a time."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # by kind and first position: tables [positions, width]
        self._tables: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def trim(self) -> None:
        """Drop the tables where there are many; addresses from before are invalid then."""
        if len(self._tables) > _TABLES:
            self._tables.clear()

    def at(self, position: int, kind: str) -> tuple[int, int]:
        """The addresses of the cosines and sines of a position."""
        first = position // _ROTATIONS * _ROTATIONS
        tables = self._tables.get((kind, first))
        if tables is None:
            tables = self._tables[kind, first] = self._compute(first, kind)
        cosines, sines = tables
        row = (position - first) * cosines.shape[1] * cosines.element_size()
        return cosines.data_ptr() + row, sines.data_ptr() + row

    def _compute(self, first: int, kind: str) -> tuple[Tensor, Tensor]:
        positions = torch.arange(first, first + _ROTATIONS)[None]
        kinds = (kind,) if hasattr(self._module, "layer_types") else ()
        cosines, sines = self._module(torch.empty(0, dtype=torch.bfloat16), positions, *kinds)
        return cosines[0].contiguous(), sines[0].contiguous()


def _is_supported(cache: Cache) -> bool:
    return all(type(layer) in (GrowingLayer, Int8Layer) and layer.is_initialized for layer in cache.layers)


def _capacity(cache: Cache, count: int) -> int:
    """The most tokens that a layer has room for after `count` more."""
    most: int = max(layer.capacity(layer.length + count) for layer in cache.layers)
    return most


def _locate(layer: WholeLayer, index: int, place: CachedTokens) -> int:
    """Write to `place` where a layer has its tokens and `index` more, and return the next position."""
    position: int = layer.length + index
    place.first, place.end = layer.first_seen(position), position + 1
    keys, values, scales = layer.buffers
    place.keys, place.values = keys.data_ptr(), values.data_ptr()
    place.keys_next, place.values_next, place.stride = keys.stride(0), values.stride(0), values.stride(1)
    place.scales, place.scales_next = (None, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    return position
