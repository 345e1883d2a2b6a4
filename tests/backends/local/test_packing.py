"""Packed linears: the same bits as `nn.Linear`, and the memory of the weights they replace let go."""

import pytest
import torch
from support.models import DEMO
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.local.mapped import in_file
from localgemma_cli.backends.local.nf4_modules import EmbeddingTable
from localgemma_cli.backends.local.packing import PackedLinear, can_pack, pack_linears

bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no bfloat16 kernels in oneDNN",
)


def demo(dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype, attn_implementation="eager").eval()


@bf16
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 300])
@torch.inference_mode()
def test_a_packed_product_is_the_same_bit_for_bit(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    linear = nn.Linear(192, 640, bias=False, dtype=torch.bfloat16)
    inputs = torch.randn(1, rows, 192, generator=generator).to(torch.bfloat16)
    assert torch.equal(PackedLinear(linear)(inputs), linear(inputs))


@bf16
@torch.inference_mode()
def test_a_packed_model_gives_the_same_logits_and_keeps_its_embedding() -> None:
    plain, packed = demo(torch.bfloat16), demo(torch.bfloat16)
    assert can_pack(packed)
    pack_linears(packed)
    assert not [module for module in packed.modules() if type(module) is nn.Linear]
    ids = torch.randint(108, 1000, (1, 90), generator=torch.Generator().manual_seed(2))
    assert torch.equal(plain(ids).logits, packed(ids).logits)
    assert torch.equal(plain.model.embed_tokens.weight, packed.model.embed_tokens.weight)


@bf16
@torch.inference_mode()
def test_a_loaded_models_embedding_stays_in_its_file() -> None:
    model = demo(torch.bfloat16)
    pack_linears(model)
    table = model.get_input_embeddings()
    assert isinstance(table, EmbeddingTable)
    assert in_file(table.weight)
    assert not [p for p in model.parameters() if p.data_ptr() == table.weight.data_ptr()]


def test_only_plain_bfloat16_on_a_cpu_is_packed() -> None:
    assert not can_pack(demo(torch.float32))
