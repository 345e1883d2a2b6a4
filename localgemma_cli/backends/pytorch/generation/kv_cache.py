"""The KV cache of one conversation, which is rolled back to the prefix that a new prompt shares with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from localgemma_cli.backends.pytorch.layers.attention import NAME as GROUPED
from localgemma_cli.backends.pytorch.layers.kv_int8 import MOST_TOKENS, Int8Keys, Int8Values, quantize_states

_GROWTH = 256  # tokens: a buffer grows by this much at a time, so that most steps copy nothing
_BUCKETS = (512, 1024, 2048, 4096)  # tokens; in a short chat attention does not run over the whole context


class WholeLayer(DynamicLayer):
    """Keys and values of every token, written in place into buffers that grow.

    A sliding layer keeps all tokens too and gives attention only its window. A roll-back then only changes
    `length`; transformers' own sliding layer cannot roll back past its window.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0
        self.reserved = 0  # tokens to make room for at the next growth

    def capacity(self, tokens: int) -> int:
        """The size of a buffer for this many tokens."""
        return -(-max(tokens, self.reserved) // _GROWTH) * _GROWTH

    def make_room(self, count: int) -> None:
        """Let the buffers, which hold at least a token, have room for `count` more."""
        raise NotImplementedError

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys [kv_heads, tokens, head_dim]; values [kv_heads, head_dim, tokens]; in 8 bits, scales too."""
        raise NotImplementedError

    def copy_from(self, other: "WholeLayer", length: int) -> None:
        """Take over the first `length` tokens of a layer of this kind, which has them."""
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """For the next `query_length` tokens: (number of tokens attention sees, position of the first)."""
        first = self.first_seen(self.length)
        return self.length + query_length - first, first

    def first_seen(self, position: int) -> int:
        """The position of the first token that one at `position` sees."""
        return 0 if self.window is None else max(position - self.window + 1, 0)

    def get_seq_length(self) -> int:
        return self.length


class GrowingLayer(WholeLayer):
    """Keys and values in the model's dtype, [1, kv_heads, tokens, head_dim].

    With `grouped` attention, bfloat16 values are stored column by column, as their product reads them: at
    6,000 tokens it takes half as long. In float32 it would be summed in another order.
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
        self.make_room(count)
        end = self.length + count
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., first:end, :], self.values[..., first:end, :]

    def make_room(self, count: int) -> None:
        end = self.length + count
        if end > self.keys.shape[-2]:
            capacity = self.capacity(end)
            self.keys = self._move_into(self.keys, _empty_like(self.keys, capacity))
            self.values = self._move_into(self.values, self._empty_values(self.values, capacity))

    def copy_from(self, other: WholeLayer, length: int) -> None:
        self.length = length
        self.lazy_initialization(other.keys, other.values)
        capacity = self.capacity(length)
        self.keys = self._move_into(other.keys, _empty_like(other.keys, capacity))
        self.values = self._move_into(other.values, self._empty_values(other.values, capacity))

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self.keys[0], self.values[0].mT, None

    def _empty_values(self, states: torch.Tensor, tokens: int) -> torch.Tensor:
        batch, heads, _, width = states.shape
        if not self._grouped or states.dtype != torch.bfloat16:
            return _empty_like(states, tokens)
        return states.new_empty((batch, heads, width, tokens)).transpose(-1, -2)

    def _move_into(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        new[..., : self.length, :] = old[..., : self.length, :]
        return new


class Int8Layer(WholeLayer):
    """Keys and values in int8; attention over more than a few new tokens gets them unpacked."""

    def __init__(self, window: int | None) -> None:
        super().__init__(window)
        # keys [heads, tokens, d], values [heads, d, tokens], and scales [2 * heads, tokens], the keys' first
        self._buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[Int8Keys, Int8Values] | tuple[torch.Tensor, torch.Tensor]:
        count = key_states.shape[-2]
        _, first = self.get_mask_sizes(count)
        if not self.is_initialized:
            self._grow(key_states, self.capacity(self.length + count))
        self.make_room(count)
        end = self.length + count
        keys, values, scales = self._buffers
        heads, new, seen = len(keys), slice(self.length, end), slice(first, end)
        levels, scales[:, new] = quantize_states(torch.cat([key_states[0], value_states[0]]))
        keys[:, new], values[..., new] = levels[:heads], levels[heads:].transpose(1, 2)
        self.length = end
        all_keys = Int8Keys(keys[:, seen], scales[:heads, seen])
        all_values = Int8Values(values, scales[heads:, seen], first)
        if count > MOST_TOKENS:
            return all_keys.unpacked(key_states.dtype), all_values.unpacked(value_states.dtype)
        return all_keys, all_values

    def make_room(self, count: int) -> None:
        keys = self._buffers[0]
        if self.length + count > keys.shape[1]:
            self._grow(keys[None], self.capacity(self.length + count))

    def copy_from(self, other: WholeLayer, length: int) -> None:
        keys, values, scales = other.buffers
        assert scales is not None  # of the same kind
        self.length, self._buffers = length, (keys, values, scales)
        self._grow(keys[None], self.capacity(length))

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        keys, values, scales = self._buffers
        return keys, values, scales

    def _grow(self, states: torch.Tensor, tokens: int) -> None:
        _, heads, _, width = states.shape
        self.is_initialized = True
        grown = (
            states.new_empty((heads, tokens, width), dtype=torch.int8),
            states.new_empty((heads, width, tokens), dtype=torch.int8),
            states.new_empty((2 * heads, tokens), dtype=torch.bfloat16),
        )
        for old, new, axis in zip(self._buffers, grown, (1, 2, 1), strict=False):
            new.narrow(axis, 0, self.length).copy_(old.narrow(axis, 0, self.length))
        self._buffers = grown


class PreallocatedLayer(StaticLayer):
    """transformers' static layer without `mark_static_address`, which ties compiled code to one cache object.

    All tensors are created in inference mode: torch.compile distinguishes those from others and would compile
    the step twice.
    """

    cumulative_length: torch.Tensor

    @torch.inference_mode()
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)

    @torch.inference_mode()
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # zeros: attention ignores masked slots, but not if they contain NaN
        self.keys = _empty_like(key_states, self.max_cache_len).zero_()
        self.values = _empty_like(value_states, self.max_cache_len).zero_()
        self.cumulative_length = self.cumulative_length.to(self.device)
        self.is_initialized = True

    @torch.inference_mode()
    def resized(self, capacity: int, used: int) -> "PreallocatedLayer":
        """A copy with room for `capacity` tokens, and the first `used` of this one."""
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
    """A transformers cache and the ids of its tokens, by which a new prompt reuses what it shares."""

    def __init__(self, config: PreTrainedConfig, kind: str, context_length: int) -> None:
        """`kind`: full or int8 (roll back to any token), sliding (least memory) or static (fixed size)."""
        self._config, self._kind, self._context_length = config, kind, context_length
        self.reset()

    def reset(self) -> None:
        self.tokens: list[int] = []
        self._asked = 0  # tokens of the latest prompt
        self._fed = 0  # tokens in the layers: those in `tokens`, and any whose ids are not read back yet
        self.cache = Cache(layers=_layers(self._config, self._kind, self._bucket(1)))

    def reuse(self, prompt: Sequence[int], others: Sequence["KVCache"] = ()) -> int:
        """Roll back to the longest prefix of `prompt` that leaves a token to compute; return its length.

        Where one of `others`, of the same kind, has a longer one, it is copied.
        """
        keep = self.shared(prompt)
        lengths = ((each.shared(prompt), each) for each in others)
        longest, best = max(lengths, key=itemgetter(0), default=(0, self))
        if longest > keep:
            self._copy_from(best, longest)
        else:
            self.truncate(keep)
        if self._kind == "static" and self._bucket(2 * len(prompt)) < self.cache.layers[0].max_cache_len:
            self._resize(self._bucket(2 * len(prompt)))  # a new chat is short even after a long one
        self._asked = len(prompt)
        return len(self.tokens)

    def is_continued_by(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` begins with the latest one, so that reuse would drop no more than an answer."""
        return self.shared(prompt) >= self._asked - 1

    def shared(self, prompt: Sequence[int]) -> int:
        """How many tokens of `prompt` are in the cache, at most all but the last."""
        pairs = enumerate(zip(self.tokens, prompt, strict=False))
        same = next((index for index, (one, other) in pairs if one != other), len(self.tokens))
        return min(same, len(prompt) - 1)

    @torch.inference_mode()
    def _copy_from(self, other: "KVCache", length: int) -> None:
        self.reset()
        for layer, source in zip(self.cache.layers, other.cache.layers, strict=True):
            if not isinstance(layer, WholeLayer):  # others cannot be rolled back to any length
                return
            layer.copy_from(source, length)
        self.tokens, self._fed = list(other.tokens[:length]), length

    def reserve(self, length: int) -> None:
        """Let the next growth make room for `length` tokens, so that a prompt's chunks move nothing."""
        for layer in self.cache.layers:
            if isinstance(layer, WholeLayer):
                layer.reserved = length

    @contextmanager
    def appending(self, tokens: Sequence[int]) -> Iterator[Cache]:
        """Around a forward over `tokens`, which are added to the ids."""
        with self.feeding(len(tokens)) as cache:
            yield cache
        self.tokens.extend(tokens)

    @contextmanager
    def feeding(self, count: int) -> Iterator[Cache]:
        """Around one forward over `count` tokens, whose ids the caller adds to `tokens` later.

        `truncate` drops those whose ids were not added. If the forward fails, layers differ in length, so the
        whole cache is dropped.
        """
        try:
            if self._kind == "static" and self._fed + count > self.cache.layers[0].max_cache_len:
                self._resize(self._bucket(self._fed + count))  # transformers' layer would write past its end
            yield self.cache
        except BaseException:
            self.reset()
            raise
        self._fed += count

    def _bucket(self, tokens: int) -> int:
        """The smallest capacity for `tokens`; the step is compiled once per capacity."""
        fitting = (bucket for bucket in _BUCKETS if tokens <= bucket < self._context_length)
        return next(fitting, self._context_length)

    def _resize(self, capacity: int) -> None:
        """Resize a static cache layer by layer, so that at most one layer is in memory twice."""
        layers = self.cache.layers
        try:
            for index, layer in enumerate(layers):
                layers[index] = layer.resized(capacity, self._fed)
        except BaseException:
            self.reset()
            raise
        self.cache = Cache(layers=layers)  # a new object invalidates what was recorded for the old one

    @torch.inference_mode()  # as in decoding: its tensors cannot be changed outside
    def truncate(self, length: int) -> None:
        """Roll back to the first `length` tokens; to none where a sliding cache no longer has them."""
        removed = self._fed - length
        if removed == 0:
            return
        if not all(_crop(layer, length, removed) for layer in self.cache.layers):
            self.reset()
            return
        del self.tokens[length:]
        self._fed = length


def choose_cache(caches: list[KVCache], prompt: Sequence[int]) -> KVCache:
    """The cache whose conversation `prompt` continues, else the one that was not used for longest.

    `caches` are in the order of their use, and are left so.
    """
    best = max(caches, key=lambda each: each.shared(prompt))
    chosen = best if best.is_continued_by(prompt) else caches[0]
    caches.remove(chosen)
    caches.append(chosen)
    return chosen


def _crop(layer: object, length: int, removed: int) -> bool:
    """Shorten a layer to `length` tokens; False where a sliding layer no longer has them."""
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
