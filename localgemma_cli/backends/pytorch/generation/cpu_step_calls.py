"""The C calls of a fast CPU step of some rows, bound to a model's weights and to tensors of their own.

transformers' forward runs about 60 operations per layer. Here a layer is eleven calls of C functions with
fixed arguments.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.kernels.step import AttentionShape, CachedTokens, StepFunctions
from localgemma_cli.backends.pytorch.layers.cpu_linear import bind_rows, shares_reads

Call = Callable[[], object]


@dataclass(frozen=True)
class LayerCalls:
    """Calls before and after the attention of one layer; `kind` names its rotation.

    `tokens`: an array of `CachedTokens`, one per row, which a step fills in.
    """

    before: Sequence[Call]
    shape: AttentionShape
    tokens: Any
    kind: str
    after: Sequence[Call]


class StepCalls:
    """The calls for `rows` rows: from `state` [rows, hidden], by `layers` and `last`, to `logits`."""

    def __init__(self, model: PreTrainedModel, functions: StepFunctions, rows: int) -> None:
        self._config, self._functions = model.config, functions
        self._held: list[object] = []  # tensors whose addresses the calls below have
        self._threads = torch.get_num_threads()
        self._rows = rows
        self.state = torch.empty((rows, self._config.hidden_size), dtype=torch.bfloat16)
        self.layers: list[LayerCalls] = []
        decoder: Any = model.model
        added, after = None, None  # what the block before computed, and the norm after it
        for index, layer in enumerate(decoder.layers):
            kinds = getattr(self._config, "layer_types", None)
            built, added = self._bind_layer(layer, kinds[index] if kinds else "full_attention", added, after)
            self.layers.append(built)
            after = getattr(layer, "post_feedforward_layernorm", None)
        assert added is not None  # a model has layers
        call, hidden = self._bind_norm(added, after, decoder.norm)
        product, self.logits = bind_rows(model.lm_head, hidden)
        self.last = (call, product)

    def _bind_layer(
        self, layer: Any, kind: str, added: Tensor | None, after: nn.Module | None
    ) -> tuple[LayerCalls, Tensor]:
        """Bind a layer that begins by adding the block before it; return what its MLP computes too."""
        attention, mlp = layer.self_attn, layer.mlp
        has_more_norms = hasattr(layer, "pre_feedforward_layernorm")
        begin, rows = self._bind_norm(added, after, layer.input_layernorm)
        products = [bind_rows(each, rows) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
        shape, mixed = self._shape(attention, [out for _, out in products])
        output, attended = bind_rows(attention.o_proj, mixed)
        middle, rows = self._bind_norm(
            attended,
            layer.post_attention_layernorm if has_more_norms else None,
            layer.pre_feedforward_layernorm if has_more_norms else layer.post_attention_layernorm,
        )
        (gate, gates), (up, ups) = bind_rows(mlp.gate_proj, rows), bind_rows(mlp.up_proj, rows)
        inner = torch.empty((self._rows, self._config.intermediate_size), dtype=torch.bfloat16)
        pointers = map(self._address, (gates, ups, inner))
        multiply = functools.partial(self._functions["gate"], self._threads, inner.numel(), *pointers)
        down, result = bind_rows(mlp.down_proj, inner)
        before = (begin, *(call for call, _ in products))
        tokens = (CachedTokens * self._rows)()
        return LayerCalls(before, shape, tokens, kind, (output, middle, gate, up, multiply, down)), result

    def _bind_norm(self, added: Tensor | None, after: nn.Module | None, norm: Any) -> tuple[Call, Tensor]:
        out = torch.empty_like(self.state)
        pointers = map(self._address, (self.state, added, _weight(after), norm.weight, out))
        return functools.partial(self._functions["add_norm"], *out.shape, norm.eps, *pointers), out

    def _shape(self, attention: Any, projected: Sequence[Tensor]) -> tuple[AttentionShape, Tensor]:
        config = self._config
        heads, width = config.num_attention_heads, attention.head_dim
        # Gemma 3 keeps the value in its config and does not use it
        softcap = attention.attn_logit_softcapping if config.model_type == "gemma2" else None
        norms = (_weight(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
        out = torch.empty((self._rows, heads * width), dtype=torch.bfloat16)
        sizes = (heads, config.num_key_value_heads, width)
        factors = (attention.scaling, softcap or 0, config.rms_norm_eps)
        pointers = map(self._address, (*norms, *projected, out))
        return AttentionShape(*sizes, *factors, *pointers), out

    def _address(self, tensor: Tensor | None) -> int | None:
        self._held.append(tensor)
        return None if tensor is None else tensor.data_ptr()


def reads_once(model: PreTrainedModel) -> bool:
    """Return whether every linear layer reads its weights once for several rows."""
    decoder: Any = model.model
    names = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    return shares_reads(model.lm_head) and all(
        shares_reads(getattr(block, name))
        for layer in decoder.layers
        for block, some in zip((layer.self_attn, layer.mlp), names, strict=True)
        for name in some
    )


def _weight(norm: Any) -> Any:
    return None if norm is None else norm.weight
