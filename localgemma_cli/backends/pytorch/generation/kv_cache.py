"""The KV cache of one conversation: what it holds, and rolling it back to what a new prompt shares."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from localgemma_cli.backends.pytorch.layers.attention import NAME as GROUPED
from localgemma_cli.backends.pytorch.layers.attention import has_own_products
from localgemma_cli.backends.pytorch.layers.kv_int8 import MOST_TOKENS, Int8Keys, Int8Values, quantized

_GROWTH = 256  # tokens; a growing buffer is reallocated once per so many steps, not copied at each
_BUCKETS = (512, 1024, 2048, 4096)  # tokens; a short chat does not pay for attention over the whole context


class WholeLayer(DynamicLayer):
    """Keys and values of every token, written in place into buffers that grow.

    A sliding layer keeps all of them too and shows attention only its window, so that a roll-back to any
    token is a change of `length`; transformers' own sliding layer cannot go back past its window.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0
        self.expected = 0  # tokens that are known to come

    def capacity(self, tokens: int) -> int:
        """How much room to make for so many."""
        return -(-max(tokens, self.expected) // _GROWTH) * _GROWTH

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens attention sees, position of the first of them) for the next `query_length` tokens."""
        first = 0 if self.window is None else max(self.length - self.window + 1, 0)
        return self.length + query_length - first, first

    def get_seq_length(self) -> int:
        return self.length


class GrowingLayer(WholeLayer):
    """As they are, [1, kv_heads, tokens, head_dim].

    With `grouped` attention, bfloat16 values lie column by column for PyTorch's product: it is the same bit
    for bit, and at 6,000 tokens takes half as long. In float32 it would be summed in another order.
    """

    def __init__(self, window: int | None, grouped: bool = False) -> None:
        super().__init__(window)
        self._grouped = grouped

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = key_states.shape[-2]
        _, first = self.get_mask_sizes(count)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = _empty_like(key_states, 0), self._empty_values(value_states, 0)
        end = self.length + count
        if end > self.keys.shape[-2]:
            capacity = self.capacity(end)
            self.keys = self._moved(self.keys, _empty_like(self.keys, capacity))
            self.values = self._moved(self.values, self._empty_values(self.values, capacity))
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., first:end, :], self.values[..., first:end, :]

    def _empty_values(self, states: torch.Tensor, tokens: int) -> torch.Tensor:
        batch, heads, _, width = states.shape
        if not self._grouped or states.dtype != torch.bfloat16 or has_own_products(states):
            return _empty_like(states, tokens)
        return states.new_empty((batch, heads, width, tokens)).transpose(-1, -2)

    def _moved(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        new[..., : self.length, :] = old[..., : self.length, :]
        return new


class Int8Layer(WholeLayer):
    """In 8 bits; a few tokens' attention gets them as they are, a chunk of a prompt unpacked."""

    def __init__(self, window: int | None) -> None:
        super().__init__(window)
        # keys [heads, tokens, d], values [heads, d, tokens], and scales [2 * heads, tokens], the keys' first
        self._buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[Int8Keys, Int8Values] | tuple[torch.Tensor, torch.Tensor]:
        count = key_states.shape[-2]
        _, first = self.get_mask_sizes(count)
        end = self.length + count
        if not self._buffers or end > self._buffers[0].shape[1]:
            self._grow(key_states, self.capacity(end))
        keys, values, scales = self._buffers
        heads, new, seen = len(keys), slice(self.length, end), slice(first, end)
        levels, scales[:, new] = quantized(torch.cat([key_states[0], value_states[0]]))
        keys[:, new], values[..., new] = levels[:heads], levels[heads:].transpose(1, 2)
        self.length = end
        all_keys = Int8Keys(keys[:, seen], scales[:heads, seen])
        all_values = Int8Values(values, scales[heads:, seen], first)
        if count > MOST_TOKENS:
            return all_keys.unpacked(key_states.dtype), all_values.unpacked(value_states.dtype)
        return all_keys, all_values

    def _grow(self, states: torch.Tensor, tokens: int) -> None:
        _, heads, _, width = states.shape
        grown = (
            states.new_empty((heads, tokens, width), dtype=torch.int8),
            states.new_empty((heads, width, tokens), dtype=torch.int8),
            states.new_empty((2 * heads, tokens), dtype=torch.bfloat16),
        )
        for old, new, axis in zip(self._buffers, grown, (1, 2, 1), strict=False):
            new.narrow(axis, 0, self.length).copy_(old.narrow(axis, 0, self.length))
        self._buffers = grown


class PreallocatedLayer(StaticLayer):
    """transformers' static layer, none of whose buffers is marked as an address that compiled code may keep.

    Such a mark makes compiled code good for one cache object only. All tensors are made in inference mode,
    wherever they are made: compiled code tells the two kinds apart and would be made twice.
    """

    cumulative_length: torch.Tensor

    @torch.inference_mode()
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)

    @torch.inference_mode()
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # zeros: a masked slot counts for nothing, but not where it holds NaN
        self.keys = _empty_like(key_states, self.max_cache_len).zero_()
        self.values = _empty_like(value_states, self.max_cache_len).zero_()
        self.cumulative_length = self.cumulative_length.to(self.device)
        self.is_initialized = True

    @torch.inference_mode()
    def resized(self, capacity: int, used: int) -> "PreallocatedLayer":
        """A layer of `capacity` slots with the first `used` tokens of this one."""
        layer = PreallocatedLayer(capacity)
        if self.is_initialized:
            layer.lazy_initialization(self.keys, self.values)
            layer.keys[..., :used, :] = self.keys[..., :used, :]
            layer.values[..., :used, :] = self.values[..., :used, :]
            layer.cumulative_length.fill_(used)
        return layer


def _empty_like(states: torch.Tensor, tokens: int) -> torch.Tensor:
    return states.new_empty((*states.shape[:2], tokens, states.shape[-1]))


class KVCache:
    """A transformers cache together with the token ids it holds; the ids decide what may be reused."""

    def __init__(self, config: PreTrainedConfig, kind: str, context_length: int) -> None:
        """`kind` is the plan's: full or int8 (any roll-back), sliding (least memory), static (one size)."""
        self._config, self._kind, self._context_length = config, kind, context_length
        self.reset()

    def reset(self) -> None:
        self.tokens: list[int] = []
        self._fed = 0  # tokens in the layers: `tokens`, and those whose ids are on their way to the host
        self.cache = Cache(layers=_layers(self._config, self._kind, self._bucket(1)))

    def reuse(self, prompt: Sequence[int]) -> int:
        """Roll back to the longest prefix of `prompt` that leaves a token to compute; its length."""
        shared = next((i for i, (a, b) in enumerate(zip(self.tokens, prompt, strict=False)) if a != b), None)
        keep = min(len(self.tokens), len(prompt) - 1) if shared is None else min(shared, len(prompt) - 1)
        self.keep(keep)
        if self._kind == "static" and self._bucket(2 * len(prompt)) < self.cache.layers[0].max_cache_len:
            self._resize(self._bucket(2 * len(prompt)))  # a new chat after a long one is a short chat
        return len(self.tokens)

    def expect(self, length: int) -> None:
        """Room for `length` tokens at once: a prompt's chunks would move what is there again and again."""
        for layer in self.cache.layers:
            if isinstance(layer, WholeLayer):
                layer.expected = length

    @contextmanager
    def appending(self, tokens: Sequence[int]) -> Iterator[Cache]:
        """`feeding` of ids that are known."""
        with self.feeding(len(tokens)) as cache:
            yield cache
        self.tokens.extend(tokens)

    @contextmanager
    def feeding(self, count: int) -> Iterator[Cache]:
        """Around one forward over `count` tokens; `keep` takes away what is not in `tokens` by then.

        Where it fails, layers differ in length, so all is dropped.
        """
        try:
            if self._kind == "static" and self._fed + count > self.cache.layers[0].max_cache_len:
                self._resize(self._bucket(self._fed + count))  # transformers' own would write past its end
            yield self.cache
        except BaseException:
            self.reset()
            raise
        self._fed += count

    def _bucket(self, tokens: int) -> int:
        """The smallest preallocated length that holds `tokens`; each is a compiled step of its own."""
        fitting = (bucket for bucket in _BUCKETS if tokens <= bucket < self._context_length)
        return next(fitting, self._context_length)

    def _resize(self, capacity: int) -> None:
        """Move a static cache, layer by layer, so that no more than one of them exists twice."""
        layers = self.cache.layers
        try:
            for index, layer in enumerate(layers):
                layers[index] = layer.resized(capacity, self._fed)
        except BaseException:
            self.reset()
            raise
        self.cache = Cache(layers=layers)  # a new object: what was recorded over the old one is void

    @torch.inference_mode()  # as in decoding: tensors made there cannot be changed outside of it
    def keep(self, length: int) -> None:
        """Roll back to the first `length` tokens; to none where a sliding cache has lost what that needs."""
        removed = self._fed - length
        if removed == 0:
            return
        if not all(_crop(layer, length, removed) for layer in self.cache.layers):
            self.reset()
            return
        del self.tokens[length:]
        self._fed = length


def _crop(layer: object, length: int, removed: int) -> bool:
    """Shorten one layer to `length` tokens; False where what it would need is already gone."""
    if isinstance(layer, WholeLayer):
        layer.length = length
    elif isinstance(layer, StaticLayer):
        layer.cumulative_length.fill_(length)
    elif isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() >= layer.sliding_window:
        return False
    elif isinstance(layer, DynamicLayer):
        layer.crop(-removed)
    return True


def _layers(config: PreTrainedConfig, kind: str, context_length: int) -> list[object]:
    windows = layer_windows(config)
    if kind == "static":
        return [PreallocatedLayer(context_length) for _ in windows]
    if kind == "int8":
        return [Int8Layer(window) for window in windows]
    grouped = config._attn_implementation == GROUPED
    if kind == "sliding":
        return [
            GrowingLayer(None, grouped) if window is None else DynamicSlidingWindowLayer(window)
            for window in windows
        ]
    return [GrowingLayer(window, grouped) for window in windows]


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """Per layer: the sliding window in tokens, or None for full attention."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in types]
