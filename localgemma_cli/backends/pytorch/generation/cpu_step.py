"""The one-token step of a dense Gemma 1, 2 or 3 in bfloat16 on a CPU, with C functions between its products.

transformers' forward runs about 60 operations per layer for one row. Here a layer is eleven calls of C
functions with fixed arguments. Numbers are rounded where transformers rounds them, so logits differ from its
own only where sums in float32, in another order, round to the other side.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from localgemma_cli.backends.pytorch.generation.cuda_graph import Step
from localgemma_cli.backends.pytorch.generation.kv_cache import GrowingLayer, Int8Layer
from localgemma_cli.backends.pytorch.kernels.step import AttentionShape, CachedTokens, StepFunctions
from localgemma_cli.backends.pytorch.layers.cpu_linear import bind_row
from localgemma_cli.errors import first_line

Call = Callable[[], object]

_ROTATIONS = 256  # positions whose cosines and sines are computed together
_GROUP = 64  # the products round a row up to this many numbers
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layer:
    """Calls before and after the attention of one layer; `kind` names its rotation."""

    before: Sequence[Call]
    shape: AttentionShape
    tokens: CachedTokens
    kind: str
    after: Sequence[Call]


class CpuStep:
    """Computes the logits [1, vocabulary] in float32 of a token [1, 1] after those in a cache.

    `plain` is the step that it replaces, and falls back to.
    """

    def __init__(self, model: PreTrainedModel, functions: StepFunctions, plain: Step) -> None:
        self._model, self._functions, self._plain = model, functions, plain
        self._decoder: Any = model.model
        self._held: list[object] = []  # tensors whose addresses the calls below have
        self._rotations = _Rotations(self._decoder.rotary_emb)
        self._scratch = (torch.empty(0), torch.empty(0))
        self._threads = torch.get_num_threads()
        self._build()

    def __call__(self, token: Tensor, cache: Cache) -> Tensor:
        if self._functions and all(_is_supported(layer) for layer in cache.layers):
            try:
                return self._run(token, cache.layers)
            except Exception as error:  # the cache is as before: its lengths change last
                self._functions = {}
                _log.warning(
                    "localgemma: the fast decoding step failed, continuing without it (slower): %s",
                    first_line(error),
                )
        return self._plain(token, cache)

    def _run(self, token: Tensor, cached: Sequence[Any]) -> Tensor:
        position = cached[0].length
        self._state.copy_(self._decoder.embed_tokens(token)[0])
        self._reserve(max(layer.capacity(position + 1) for layer in cached))
        attend = self._functions["attend"]
        for layer, kept in zip(self._layers, cached, strict=True):
            _locate(kept, layer.tokens)
            for call in layer.before:
                call()
            attend(self._threads, layer.shape, layer.tokens, *self._rotations.at(position, layer.kind))
            for call in layer.after:
                call()
        for call in self._last:
            call()
        for kept in cached:
            kept.length += 1
        return self._capped(self._logits).float()

    def _capped(self, logits: Tensor) -> Tensor:
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _reserve(self, tokens: int) -> None:
        """Make the scratch memory of attention large enough for so many tokens."""
        config = self._model.config
        size = config.num_attention_heads * (max(tokens, config.head_dim) + _GROUP)
        if size > len(self._scratch[0]):
            self._scratch = (torch.empty(size), torch.empty(size))
            for layer in self._layers:
                layer.tokens.scores, layer.tokens.numbers = (each.data_ptr() for each in self._scratch)

    def _build(self) -> None:
        config, decoder = self._model.config, self._decoder
        self._state = torch.empty((1, config.hidden_size), dtype=torch.bfloat16)
        self._layers: list[_Layer] = []
        added, after = None, None  # what the block before computed, and the norm after it
        for index, layer in enumerate(decoder.layers):
            kinds = getattr(config, "layer_types", None)
            built, added = self._bind_layer(layer, kinds[index] if kinds else "full_attention", added, after)
            self._layers.append(built)
            after = getattr(layer, "post_feedforward_layernorm", None)
        assert added is not None  # a model has layers
        call, hidden = self._bind_norm(added, after, decoder.norm)
        product, self._logits = bind_row(self._model.lm_head, hidden)
        self._last = (call, product)

    def _bind_layer(
        self, layer: Any, kind: str, added: Tensor | None, after: nn.Module | None
    ) -> tuple[_Layer, Tensor]:
        """Bind a layer that begins by adding the block before it; return what its MLP computes too."""
        attention, mlp = layer.self_attn, layer.mlp
        has_more_norms = hasattr(layer, "pre_feedforward_layernorm")
        begin, row = self._bind_norm(added, after, layer.input_layernorm)
        products = [bind_row(each, row) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
        shape, mixed = self._shape(attention, [out for _, out in products])
        output, attended = bind_row(attention.o_proj, mixed)
        middle, row = self._bind_norm(
            attended,
            layer.post_attention_layernorm if has_more_norms else None,
            layer.pre_feedforward_layernorm if has_more_norms else layer.post_attention_layernorm,
        )
        (gate, gates), (up, ups) = bind_row(mlp.gate_proj, row), bind_row(mlp.up_proj, row)
        inner = torch.empty((1, self._model.config.intermediate_size), dtype=torch.bfloat16)
        pointers = map(self._address, (gates, ups, inner))
        multiply = functools.partial(self._functions["gate"], inner.shape[1], *pointers)
        down, result = bind_row(mlp.down_proj, inner)
        before = (begin, *(call for call, _ in products))
        return _Layer(before, shape, CachedTokens(), kind, (output, middle, gate, up, multiply, down)), result

    def _bind_norm(self, added: Tensor | None, after: nn.Module | None, norm: Any) -> tuple[Call, Tensor]:
        out = torch.empty_like(self._state)
        pointers = map(self._address, (self._state, added, _weight(after), norm.weight, out))
        return functools.partial(self._functions["add_norm"], out.shape[1], norm.eps, *pointers), out

    def _shape(self, attention: Any, projected: Sequence[Tensor]) -> tuple[AttentionShape, Tensor]:
        config = self._model.config
        heads, width = config.num_attention_heads, attention.head_dim
        # Gemma 3 keeps the value in its config and does not use it
        softcap = attention.attn_logit_softcapping if config.model_type == "gemma2" else None
        norms = (_weight(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
        out = torch.empty((1, heads * width), dtype=torch.bfloat16)
        sizes = (heads, config.num_key_value_heads, width)
        factors = (attention.scaling, softcap or 0, config.rms_norm_eps)
        pointers = map(self._address, (*norms, *projected, out))
        return AttentionShape(*sizes, *factors, *pointers), out

    def _address(self, tensor: Tensor | None) -> int | None:
        self._held.append(tensor)
        return None if tensor is None else tensor.data_ptr()


def _weight(norm: Any) -> Any:
    return None if norm is None else norm.weight


class _Rotations:
    """Cosines and sines from the model's own module, for some positions at a time."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # by kind: first position, and tables [positions, width]
        self._tables: dict[str, tuple[int, Tensor, Tensor]] = {}

    def at(self, position: int, kind: str) -> tuple[int, int]:
        """The addresses of the cosines and sines of a position."""
        table = self._tables.get(kind)
        if table is None or not table[0] <= position < table[0] + _ROTATIONS:
            table = self._tables[kind] = self._compute(position, kind)
        first, cosines, sines = table
        row = (position - first) * cosines.shape[1] * cosines.element_size()
        return cosines.data_ptr() + row, sines.data_ptr() + row

    def _compute(self, first: int, kind: str) -> tuple[int, Tensor, Tensor]:
        positions = torch.arange(first, first + _ROTATIONS)[None]
        kinds = (kind,) if hasattr(self._module, "layer_types") else ()
        cosines, sines = self._module(torch.empty(0, dtype=torch.bfloat16), positions, *kinds)
        return first, cosines[0].contiguous(), sines[0].contiguous()


def _is_supported(layer: Any) -> bool:
    return type(layer) in (GrowingLayer, Int8Layer) and layer.is_initialized


def _locate(layer: Any, tokens: CachedTokens) -> None:
    """Make room for the next token, and write where the layer has its tokens to `tokens`."""
    layer.make_room(1)
    count, first = layer.get_mask_sizes(1)
    tokens.first, tokens.end = first, first + count
    keys, values, scales = layer.buffers
    tokens.keys, tokens.values = keys.data_ptr(), values.data_ptr()
    tokens.keys_next, tokens.values_next, tokens.stride = keys.stride(0), values.stride(0), values.stride(1)
    tokens.scales, tokens.scales_next = (None, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
