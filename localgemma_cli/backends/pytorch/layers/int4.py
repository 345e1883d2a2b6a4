"""Linear layers of an AWQ checkpoint, with 4-bit weights in groups, on PyTorch's products.

A weight is (q - 8) * scale + offset, with q in 0..15 and both factors in bfloat16.
"""

from functools import cache

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.layers.cpu_linear import is_widened

GROUP_SIZES = (32, 64, 128, 256)  # input features that the products can share a scale by
_ROW_BLOCKS = (64, 32)  # output features that lie together on a CPU: with AVX-512, with AVX2
ROWS = max(_ROW_BLOCKS)  # what packs on every processor is a multiple of this
_UNPACK_FROM = 96  # rows; PyTorch's products are made for fewer, and so many repay the unpacking
_UNPACKED = 1 << 21  # weights at a time: 8 MB, which the processor's caches hold
_TILES = 8  # of 16 input features: a parameter of the CUDA product


class Int4Linear(nn.Module):
    """[..., in] -> [..., out], in the type of its input.

    `packed` is in the layout of the device's product; `scales` [in / group, out, 2] are scale and offset.
    A few rows are rounded to bfloat16, and many are not rounded.
    """

    def __init__(self, packed: Tensor, scales: Tensor, group: int) -> None:
        super().__init__()
        self.group, self.in_features, self.out_features = group, group * scales.shape[0], scales.shape[1]
        self.packed, self.scales = nn.Buffer(packed.contiguous()), nn.Buffer(scales.contiguous())
        on_cpu = packed.device.type == "cpu"
        self._block = row_block() if on_cpu and packed.shape[0] % ROWS == 0 else None

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        if self._block is not None and rows.shape[0] >= _UNPACK_FROM:
            product = self._multiply_unpacked(rows)
        else:
            product = self._multiply_by_torch(rows)
        return product.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _multiply_by_torch(self, rows: Tensor) -> Tensor:
        aten = torch.ops.aten
        multiply = aten._weight_int4pack_mm if rows.is_cuda else aten._weight_int4pack_mm_for_cpu
        product: Tensor = multiply(rows.to(torch.bfloat16), self.packed, self.group, self.scales)
        return product

    def _multiply_unpacked(self, rows: Tensor) -> Tensor:
        """Unpack the weights of a few output features at a time: a whole head would be gigabytes."""
        dtype = torch.bfloat16 if rows.dtype == torch.bfloat16 and not is_widened() else torch.float32
        rows = rows.to(dtype)
        product = rows.new_empty(rows.shape[0], self.packed.shape[0])
        step = ROWS * max(1, _UNPACKED // (ROWS * self.in_features))
        scratch = torch.empty(step * self.in_features)  # once: fresh memory costs as much as unpacking
        for first in range(0, product.shape[1], step):
            last = min(first + step, product.shape[1])
            product[:, first:last] = rows @ self._unpacked(first, last, scratch).to(dtype)
        return product

    def _unpacked(self, first: int, last: int, scratch: Tensor) -> Tensor:
        """Unpack to [in, last - first] float32, in `scratch`, from the layout of `interleave_levels`."""
        assert self._block is not None
        groups, half = self.scales.shape[0], self._block // 2
        pairs = self.packed[first:last].view(-1, groups, self.group, half).permute(1, 2, 0, 3)
        flat = scratch[: (last - first) * self.in_features]
        weight = flat.view(*pairs.shape[:3], 2, half)
        weight[..., 0, :], weight[..., 1, :] = pairs & 15, pairs >> 4
        scales, offsets = self.scales[:, first:last].permute(2, 0, 1).float().contiguous()
        shape = (groups, 1, -1, 2, half)
        weight.mul_(scales.reshape(shape)).add_((offsets - 8 * scales).reshape(shape))
        return flat.view(self.in_features, last - first)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


def from_levels(levels: Tensor, scales: Tensor, zeros: Tensor, device: str) -> Int4Linear:
    """Build a layer of weights (q - zero) * scale.

    `levels` [out, in] in uint8, 0..15; `scales` and `zeros` [in / group, out] in float32.
    """
    factors = torch.stack([scales, (8 - zeros) * scales], dim=-1).to(device, torch.bfloat16)
    group = levels.shape[1] // len(scales)
    return Int4Linear(_pack(levels.to(device)), factors, group)


def can_keep(levels: Tensor, group: int) -> bool:
    """Return whether PyTorch's products support a weight [out, in] of that shape."""
    rows, columns = levels.shape
    return group in GROUP_SIZES and rows % 16 == 0 and columns % (16 * _TILES) == 0


def _pack(levels: Tensor) -> Tensor:
    packed: Tensor
    if levels.is_cuda:
        pairs = levels[:, ::2] << 4 | levels[:, 1::2]
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, _TILES)
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
    return packed


def interleave_levels(levels: Tensor, block: int) -> Tensor:
    """Pack [n, k] -> [n, k / 2] as PyTorch does, three times as fast; n is a multiple of `block`.

    For every input feature, a block's first rows are the low halves of bytes, the others the high ones.
    """
    rows, width = levels.shape
    halves = levels.view(-1, 2, block // 2, width)
    pairs = halves[:, 0] | halves[:, 1] << 4
    return pairs.transpose(1, 2).reshape(rows, width // 2).contiguous()  # with a single block it is a view


@cache
def row_block() -> int | None:
    """Return how many output features PyTorch packs side by side here; None if in a layout unknown to us."""
    levels = torch.randint(0, 16, (2 * ROWS, 128), generator=torch.Generator().manual_seed(0)).byte()
    packed = _pack(levels)
    return next(
        (block for block in _ROW_BLOCKS if torch.equal(interleave_levels(levels, block), packed)), None
    )
