"""Linear layers over 4-bit weights with a scale and an offset per group: on our kernel, or PyTorch's own.

A weight is (q - 8) * scale + offset, with q in 0..15 and both factors in bfloat16.
"""

from functools import cache

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.kernels.int4 import int4_rows, interleaved, kernel, rows_times
from localgemma_cli.backends.pytorch.layers.cpu_linear import is_widened

GROUPS = (32, 64, 128, 256)  # sizes that the kernels know
_ROW_BLOCKS = (64, 32)  # output features that lie together on a CPU: with AVX-512, with AVX2
ROWS = max(_ROW_BLOCKS)  # what packs on every processor is a multiple of this
_UNPACK_FROM = 96  # rows; PyTorch's kernels are made for few, and a prompt is worth unpacking for
_UNPACKED = 1 << 21  # weights at a time: 8 MB, which the processor's caches hold
_TILES = 8  # of 16 input features; the CUDA kernel's own parameter


class Int4Linear(nn.Module):
    """[..., in] -> [..., out], in the type of its input.

    `packed` as the device's kernel takes it; of `scales` [in / group, out, 2] the last are scale and offset.
    Rows beyond `out_features` are padding. With `rounds` inputs may be rounded to 8 bits, for our own kernel;
    else a few rows are to bfloat16, and many as they are.
    """

    def __init__(
        self, packed: Tensor, scales: Tensor, group: int, out_features: int, rounds: bool = True
    ) -> None:
        super().__init__()
        self.group, self.in_features, self.out_features = group, group * scales.shape[0], out_features
        self.packed, self.scales = nn.Buffer(packed.contiguous()), nn.Buffer(scales.contiguous())
        on_cpu = packed.device.type == "cpu"
        self._block = row_block() if on_cpu and packed.shape[0] % ROWS == 0 else None
        self._ours = rounds and kernel(self._block) is not None

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        if self._ours:
            product = self._by_our_kernel(rows)
        elif self._block is not None and rows.shape[0] >= _UNPACK_FROM:
            product = self._by_pieces(rows)
        else:
            product = self._by_kernel(rows)
        return product.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _by_our_kernel(self, rows: Tensor) -> Tensor:
        """A row's result is the same bits however many there are."""
        assert self._block is not None
        multiply = int4_rows if torch.compiler.is_compiling() else rows_times
        product = multiply(rows.to(torch.bfloat16).contiguous(), self.packed, self.scales, self._block)
        return product[:, : self.out_features]

    def _by_kernel(self, rows: Tensor) -> Tensor:
        aten = torch.ops.aten
        kernel = aten._weight_int4pack_mm if rows.is_cuda else aten._weight_int4pack_mm_for_cpu
        product: Tensor = kernel(rows.to(torch.bfloat16), self.packed, self.group, self.scales)
        return product[:, : self.out_features]

    def _by_pieces(self, rows: Tensor) -> Tensor:
        """The same weights, unpacked a few output features at a time: a whole head would be gigabytes."""
        dtype = torch.bfloat16 if rows.dtype == torch.bfloat16 and not is_widened() else torch.float32
        rows = rows.to(dtype)
        product = rows.new_empty(rows.shape[0], self.packed.shape[0])
        step = ROWS * max(1, _UNPACKED // (ROWS * self.in_features))
        scratch = torch.empty(step * self.in_features)  # once: fresh memory costs as much as unpacking does
        for first in range(0, product.shape[1], step):
            last = min(first + step, product.shape[1])
            product[:, first:last] = rows @ self._unpacked(first, last, scratch).to(dtype)
        return product[:, : self.out_features]

    def _unpacked(self, first: int, last: int, scratch: Tensor) -> Tensor:
        """[in, last - first] in float32, over `scratch`; halves of a byte are as `interleaved` has them."""
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
    """Of weights (q - zero) * scale, made for inputs in 16 bits.

    `levels` [out, in] in uint8, 0..15; `scales` and `zeros` [in / group, out] in float32.
    """
    factors = torch.stack([scales, (8 - zeros) * scales], dim=-1).to(device, torch.bfloat16)
    group = levels.shape[1] // len(scales)
    return Int4Linear(_pack(levels.to(device)), factors, group, len(levels), rounds=False)


def can_keep(levels: Tensor, group: int) -> bool:
    """Whether the kernels take a weight [out, in] of that shape."""
    rows, columns = levels.shape
    return group in GROUPS and rows % 16 == 0 and columns % (16 * _TILES) == 0


def _pack(levels: Tensor) -> Tensor:
    packed: Tensor
    if levels.is_cuda:
        pairs = levels[:, ::2] << 4 | levels[:, 1::2]
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, _TILES)
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
    return packed


@cache
def row_block() -> int | None:
    """How many rows this processor's kernel reads side by side; None where it is none that is known here."""
    levels = torch.randint(0, 16, (2 * ROWS, 128), generator=torch.Generator().manual_seed(0)).byte()
    packed = _pack(levels)
    return next((block for block in _ROW_BLOCKS if torch.equal(interleaved(levels, block), packed)), None)
