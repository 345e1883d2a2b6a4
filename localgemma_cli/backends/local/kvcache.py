"""The KV cache of one conversation: what it holds, and rolling it back to what a new prompt shares."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

_GROWTH = 256  # tokens; a growing buffer is reallocated once per so many steps, not copied at each
_BUCKETS = (512, 1024, 2048, 4096)  # tokens; a short chat does not pay for attention over the whole context


class GrowingLayer(DynamicLayer):
    """Keys and values of every token, [1, kv_heads, tokens, head_dim], written in place.

    A sliding layer keeps all of them too and shows attention only its window, so that a roll-back to any
    token is a change of `length`; transformers' own sliding layer cannot go back past its window.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = key_states.shape[-2]
        _, first = self.get_mask_sizes(count)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = _empty_like(key_states, 0), _empty_like(value_states, 0)
        end = self.length + count
        if end > self.keys.shape[-2]:
            capacity = -(-end // _GROWTH) * _GROWTH
            self.keys = _grown(self.keys, self.length, capacity)
            self.values = _grown(self.values, self.length, capacity)
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., first:end, :], self.values[..., first:end, :]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens attention sees, position of the first of them) for the next `query_length` tokens."""
        first = 0 if self.window is None else max(self.length - self.window + 1, 0)
        return self.length + query_length - first, first

    def get_seq_length(self) -> int:
        return self.length


def _empty_like(states: torch.Tensor, tokens: int) -> torch.Tensor:
    return states.new_empty((*states.shape[:2], tokens, states.shape[-1]))


def _grown(buffer: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
    larger = _empty_like(buffer, capacity)
    larger[..., :used, :] = buffer[..., :used, :]
    return larger


class KVCache:
    """A transformers cache together with the token ids it holds; the ids decide what may be reused."""

    def __init__(self, config: PreTrainedConfig, kind: str, context_length: int) -> None:
        """`kind` is the plan's: full (any roll-back), sliding (least memory) or static (preallocated)."""
        self._config, self._kind, self._context_length = config, kind, context_length
        self.reset()

    def reset(self) -> None:
        self.tokens: list[int] = []
        self.cache = Cache(layers=_layers(self._config, self._kind, self._bucket(1)))

    def reuse(self, prompt: Sequence[int]) -> int:
        """Roll back to the longest prefix of `prompt` that leaves a token to compute; its length."""
        shared = next((i for i, (a, b) in enumerate(zip(self.tokens, prompt, strict=False)) if a != b), None)
        keep = min(len(self.tokens), len(prompt) - 1) if shared is None else min(shared, len(prompt) - 1)
        self.keep(keep)
        return len(self.tokens)

    @contextmanager
    def appending(self, tokens: Sequence[int]) -> Iterator[Cache]:
        """Around one forward over `tokens`; where that fails, layers differ in length, so all is dropped."""
        if self._kind == "static":
            self._reserve(len(self.tokens) + len(tokens))
        try:
            yield self.cache
        except BaseException:
            self.reset()
            raise
        self.tokens.extend(tokens)

    def _bucket(self, tokens: int) -> int:
        """The smallest preallocated length that holds `tokens`; each is a compiled step of its own."""
        fitting = (bucket for bucket in _BUCKETS if tokens <= bucket < self._context_length)
        return next(fitting, self._context_length)

    def _reserve(self, tokens: int) -> None:
        """Move a full static cache into a longer one; transformers' own would write past its end."""
        layers = self.cache.layers
        if tokens > layers[0].max_cache_len:
            self.cache = Cache(layers=[_lengthened(layer, self._bucket(tokens)) for layer in layers])

    @torch.inference_mode()  # as in decoding: tensors made there cannot be changed outside of it
    def keep(self, length: int) -> None:
        """Roll back to the first `length` tokens; to none where a sliding cache has lost what that needs."""
        removed = len(self.tokens) - length
        if removed == 0:
            return
        if not all(_crop(layer, length, removed) for layer in self.cache.layers):
            self.reset()
        del self.tokens[length:]


def _lengthened(layer: StaticLayer, capacity: int) -> StaticLayer:
    longer, used = StaticLayer(capacity), int(layer.cumulative_length)
    if layer.is_initialized:
        longer.lazy_initialization(layer.keys, layer.values)
        longer.keys[..., :used, :] = layer.keys[..., :used, :]
        longer.values[..., :used, :] = layer.values[..., :used, :]
        longer.cumulative_length.fill_(used)
    return longer


def _crop(layer: object, length: int, removed: int) -> bool:
    """Shorten one layer to `length` tokens; False where what it would need is already gone."""
    if isinstance(layer, GrowingLayer):
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
        return [StaticLayer(context_length) for _ in windows]
    if kind == "sliding":
        return [
            GrowingLayer(None) if window is None else DynamicSlidingWindowLayer(window) for window in windows
        ]
    return [GrowingLayer(window) for window in windows]


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """Per layer: the sliding window in tokens, or None for full attention."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in types]
