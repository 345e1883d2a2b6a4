"""What each format loses of a real Gemma: KL divergence, same top token and perplexity on prose, as a table.

    python tests/quality.py [FOLDER]

FOLDER: where `python -m support.real_weights FOLDER` has put the checkpoint; without it, one is made in
a temporary folder. Every format's weights are unpacked to float32 and run through the same forward pass, that
of transformers in float32; embedding rows are looked up unquantized. KL is from the distribution that the
bfloat16 checkpoint gives, in nats per token. Bits per weight are those that an answer reads: layers and head.
"""

import argparse
import ctypes
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from support.checkpoints import plan_for
from support.real_weights import assemble_gguf, write_checkpoint
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM

from localgemma_cli.backends.pytorch.loading.calibration import measure_importance
from localgemma_cli.backends.pytorch.loading.quantized_file import linear_kind
from localgemma_cli.backends.pytorch.weights.groups import pack_groups, unpack_groups
from localgemma_cli.backends.pytorch.weights.quantize_grouped import quantize_rows
from localgemma_cli.models.safetensors_file import read_checkpoint

PROSE = Path(__file__).parent / "prose.txt"
_PIECE = 64  # tokens whose logits are compared at a time
HEAD = "lm_head"

Unpacked = tuple[Tensor, int]  # a weight in float32 after quantization, and the bits it takes
Format = Callable[[str, Tensor], Unpacked]  # of a layer's name and its weight


@dataclass(frozen=True)
class Loss:
    """Compared with the unquantized model; `kl` in nats per token, `bits` per weight of layers and head."""

    bits: float
    kl: float
    same_top: float
    perplexity: float


class Judge:
    """A checkpoint, and what it makes of the first `tokens` tokens of a text."""

    def __init__(self, folder: Path, tokens: int, vocabulary: int | None = None) -> None:
        """`vocabulary`: compare only so many of its rows, and those of the text's tokens."""
        self.folder = folder
        self.model = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        text = PROSE.read_text(encoding="utf-8")
        self.ids = torch.tensor([[2, *tokenizer.encode(text, add_special_tokens=False).ids][:tokens]])
        linears = self.model.model.named_modules(prefix="model")
        self.weights = {
            name: each.weight.detach().clone() for name, each in linears if isinstance(each, nn.Linear)
        }
        head = self.model.get_output_embeddings().weight.detach()
        rows = torch.arange(len(head))
        if vocabulary is not None:
            rows = torch.unique(torch.cat([self.ids[0], rows[:: len(rows) // vocabulary]]))
        self.head, self.targets = head[rows], torch.searchsorted(rows, self.ids[0, 1:])
        self.reference = self._hidden()

    @torch.inference_mode()
    def _hidden(self) -> Tensor:
        hidden: Tensor = self.model.model(input_ids=self.ids).last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def compare(self, unpack: Format) -> Loss:
        bits = count = 0
        for name, weight in self.weights.items():
            unpacked, size = unpack(name, weight)
            self.model.get_submodule(name).weight.data = unpacked
            bits, count = bits + size, count + weight.numel()
        head, size = unpack(HEAD, self.head)
        hidden = self._hidden()
        kl = same = surprise = 0.0
        for first in range(0, len(hidden), _PIECE):
            part = slice(first, first + _PIECE)
            expected = torch.log_softmax(self.reference[part] @ self.head.T, dim=-1)
            got = torch.log_softmax(hidden[part] @ head.T, dim=-1)
            kl += float((expected.exp() * (expected - got)).sum())
            same += float((expected.argmax(-1) == got.argmax(-1)).sum())
            targets = self.targets[part]
            surprise -= float(got[: len(targets)].gather(1, targets[:, None]).sum())
        whole = self.model.config.vocab_size * self.model.config.hidden_size
        bits += size * whole // self.head.numel()
        tokens = len(hidden)
        perplexity = math.exp(surprise / len(self.targets))
        return Loss(bits / (count + whole), kl / tokens, same / tokens, perplexity)


def unquantized(_: str, weight: Tensor) -> Unpacked:
    return weight, 16 * weight.numel()


def groups(weight: Tensor, bits: int, importance: Tensor | None) -> Unpacked:
    """In localgemma's format."""
    padded = nn.functional.pad(weight, (0, 0, 0, -len(weight) % 32))
    found = quantize_rows(padded, bits, importance)
    packed = pack_groups(found.levels, found.scales, found.offsets)
    size = 8 * packed.numel() + 32 * found.factors.numel()
    return unpack_groups(packed, found.factors.contiguous())[: len(weight)], size


def preset(folder: Path, kind: str, small_head: bool = False) -> Format:
    """The format of `memory`, of `memory_extreme` (with a small head) or of `--quantization int8`."""
    plan = plan_for(folder, quantization=kind, dtype="bfloat16")
    needed = kind == "int4"
    importance = measure_importance(plan, folder, read_checkpoint(folder), lambda _: None) if needed else {}

    def unpack(name: str, weight: Tensor) -> Unpacked:
        found = linear_kind(name, len(weight), kind, small_head)  # type: ignore[arg-type]
        return groups(weight, {"int4": 4, "int8": 8}[found], importance.get(name))

    return unpack


def bitsandbytes_nf4(name: str, weight: Tensor) -> Unpacked:
    """With an fp32 scale per 64 weights, and the head in bfloat16."""
    if name == HEAD:
        return unquantized(name, weight)
    return nf4(name, weight, scale_bits=32)


def nf4(_: str, weight: Tensor, scale_bits: int = 16) -> Unpacked:
    """With the head in NF4, too; localgemma stores bfloat16 scales, with the same values."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.to(torch.bfloat16), blocksize=64, quant_type="nf4")
    unpacked: Tensor = dequantize_4bit(packed, state).float()
    return unpacked, 4 * weight.numel() + scale_bits * state.absmax.numel()


def bitsandbytes_int8(name: str, weight: Tensor) -> Unpacked:
    """With an fp32 scale per row, and the head in bfloat16; its inputs, rounded too, are not here."""
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    if name == HEAD:
        return unquantized(name, weight)
    packed, scales, _ = int8_vectorwise_quant(weight.half())
    return int8_vectorwise_dequant(packed, scales).float(), 8 * weight.numel() + 32 * len(weight)


@cache
def _llama_cpp() -> ctypes.CDLL:
    import xllamacpp

    library = ctypes.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so")))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *(ctypes.c_int64,) * 3,
        ctypes.c_void_p,
    ]
    return library


def llama_cpp(layers: str, head: str, more: str | None = None) -> Format:
    """As llama.cpp quantizes; `more`: the type of every layer that Q4_K_M gives more bits to.

    Rows that a K-quant's 256 weights do not divide fall back as in llama.cpp.
    """
    fallback = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

    def unpack(name: str, weight: Tensor) -> Unpacked:
        wanted = head if name == HEAD else layers
        wanted = more if more and _has_more_bits(name) else wanted
        if weight.shape[1] % 256 and wanted in fallback:
            wanted = fallback[wanted]
        kind = gguf.GGMLQuantizationType[wanted]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        values = weight.contiguous().numpy()
        packed = np.empty((len(weight), weight.shape[1] // block * size), dtype=np.uint8)
        call = _llama_cpp().ggml_quantize_chunk
        call(int(kind), values.ctypes.data, packed.ctypes.data, 0, *values.shape, None)
        return torch.from_numpy(gguf.dequantize(packed, kind)), 8 * packed.size

    return unpack


def _has_more_bits(name: str, layers: int = 18) -> bool:
    """`use_more_bits` of llama.cpp: in the first and last eighth of the layers, and every third."""
    if not name.endswith(("v_proj", "down_proj")):
        return False
    layer, eighth = int(name.split(".")[2]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


FORMATS: dict[str, Callable[[Path], Format]] = {  # of a checkpoint's folder
    "`exact`, `speed`": lambda _: unquantized,
    "`memory`": lambda folder: preset(folder, "int4"),
    "`memory_extreme`": lambda folder: preset(folder, "int4", small_head=True),
    "`memory` on a GPU, `--quantization nf4`": lambda _: nf4,
    "`--quantization int8`": lambda folder: preset(folder, "int8"),
    "bitsandbytes NF4, head in bfloat16": lambda _: bitsandbytes_nf4,
    "bitsandbytes int8, head in bfloat16": lambda _: bitsandbytes_int8,
    "llama.cpp Q8_0": lambda _: llama_cpp("Q8_0", "Q8_0"),
    "llama.cpp Q6_K": lambda _: llama_cpp("Q6_K", "Q6_K"),
    "llama.cpp Q4_K_M": lambda _: llama_cpp("Q4_K", "Q6_K", "Q6_K"),
    "llama.cpp Q4_0": lambda _: llama_cpp("Q4_0", "Q6_K"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--only", default="", metavar="TEXT", help="formats whose name contains TEXT")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = arguments.folder or Path(made)
        if not (root / "gemma-3-270m").exists():
            assemble_gguf(root / "gemma-3-270m-q4_k_m.gguf")
            write_checkpoint(root / "gemma-3-270m-q4_k_m.gguf", root / "gemma-3-270m")
        judge = Judge(root / "gemma-3-270m", arguments.tokens)
        sys.stdout.write(f"{judge.ids.shape[1]} tokens\n")
        sys.stdout.write(
            "| format | bits per weight | KL, nats | same top token | perplexity |\n|---|---|---|---|---|\n"
        )
        for name, make in FORMATS.items():
            if arguments.only not in name:
                continue
            loss = judge.compare(make(judge.folder))
            cells = f"{loss.bits:.2f} | {loss.kl:.4f} | {loss.same_top:.1%} | {loss.perplexity:.2f}"
            sys.stdout.write(f"| {name} | {cells} |\n")


if __name__ == "__main__":
    main()
