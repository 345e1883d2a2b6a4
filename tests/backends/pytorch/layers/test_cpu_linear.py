"""Linear layers tuned to the processor: packed, the bits of `nn.Linear`; widened, the same to rounding."""

import pytest
import torch
from support.models import DEMO, demo_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.kernels.bfloat16 import has_bfloat16_rows
from localgemma_cli.backends.pytorch.layers import cpu_linear
from localgemma_cli.backends.pytorch.layers.cpu_linear import (
    CompactLinear,
    PackedLinear,
    WidenedLinear,
    is_widened,
    replace_linears,
    tune_linears,
)
from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable
from localgemma_cli.backends.pytorch.weights.mmap_tensors import is_mapped

bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="needs bfloat16 kernels in oneDNN",
)

# there a packed product of one row adds in another order than PyTorch's own
packs = pytest.mark.skipif(is_widened(), reason="needs a processor with bfloat16 instructions")


def demo(dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype, attn_implementation="eager").eval()


@bf16
@packs
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 300])
@torch.inference_mode()
def test_a_packed_product_is_the_same_bit_for_bit(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    torch.manual_seed(rows)
    linear = nn.Linear(192, 640, bias=False, dtype=torch.bfloat16)
    inputs = torch.randn(1, rows, 192, generator=generator).to(torch.bfloat16)
    assert torch.equal(PackedLinear(linear)(inputs), linear(inputs))


@bf16
@packs
@torch.inference_mode()
def test_a_packed_model_gives_the_same_logits_and_keeps_its_embedding() -> None:
    plain, packed = demo(torch.bfloat16), demo(torch.bfloat16)
    replace_linears(packed, PackedLinear)
    assert not [module for module in packed.modules() if type(module) is nn.Linear]
    ids = torch.randint(108, 1000, (1, 90), generator=torch.Generator().manual_seed(2))
    assert torch.equal(plain(ids).logits, packed(ids).logits)
    assert torch.equal(plain.model.embed_tokens.weight, packed.model.embed_tokens.weight)


@bf16
@torch.inference_mode()
def test_a_loaded_models_embedding_stays_in_its_file() -> None:
    model = demo(torch.bfloat16)
    tune_linears(model)
    table = model.get_input_embeddings()
    assert isinstance(table, EmbeddingTable)
    assert is_mapped(table.weight)
    assert not [p for p in model.parameters() if p.data_ptr() == table.weight.data_ptr()]


@pytest.mark.parametrize("rows", [1, 3, 4, 64, 300])
@pytest.mark.parametrize("width", [192, 40_000])  # of which a piece is many rows, and few
@pytest.mark.parametrize("extension", [False, True], ids=["PyTorch", "extension"])
@torch.inference_mode()
def test_a_widened_product_is_as_exact_as_pytorchs(
    rows: int, width: int, extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension:
        monkeypatch.setattr(cpu_linear, "has_bfloat16_rows", lambda: False)
    elif not has_bfloat16_rows():
        pytest.skip("needs the C extension for this processor")
    generator = torch.Generator().manual_seed(rows)
    linear = nn.Linear(width, 100, bias=False, dtype=torch.bfloat16)
    inputs = torch.randn(2, rows, width, generator=generator).to(torch.bfloat16)
    exact = inputs.double() @ linear.weight.double().T
    errors = [(module(inputs).double() - exact).norm() for module in (linear, WidenedLinear(linear))]
    assert errors[1] < 1.02 * errors[0]


def test_a_model_is_tuned_to_the_processor_and_to_no_other_type() -> None:
    wide = demo(torch.float32)
    tune_linears(wide)
    assert type(wide.lm_head) is nn.Linear
    model = demo(torch.bfloat16)
    tune_linears(model)
    assert kinds_of_layers(model) == ({WidenedLinear} if is_widened() else {PackedLinear})
    compact = demo(torch.bfloat16)
    tune_linears(compact, compact=True)
    if is_widened() and has_bfloat16_rows():
        assert kinds_of_layers(compact) == {CompactLinear}
    else:
        assert kinds_of_layers(compact) == kinds_of_layers(model)


def kinds_of_layers(model: PreTrainedModel) -> set[type[nn.Module]]:
    return {type(each) for name, each in model.named_modules() if name.endswith("_proj")}


@pytest.mark.skipif(not has_bfloat16_rows(), reason="needs the C extension for this processor")
@torch.inference_mode()
def test_weights_in_12_bits_give_a_model_the_same_logits() -> None:
    plain, compact = demo(torch.bfloat16), demo(torch.bfloat16)
    replace_linears(plain, WidenedLinear)
    replace_linears(compact, CompactLinear)
    ids = torch.randint(108, 1000, (1, 90), generator=torch.Generator().manual_seed(2))
    assert torch.equal(plain(ids).logits, compact(ids).logits)


@torch.inference_mode()
def test_a_widened_models_answers_are_the_plain_ones() -> None:
    plain, widened = demo(torch.bfloat16), demo(torch.bfloat16)
    replace_linears(widened, WidenedLinear, lambda _: None)
    for question in ("What is the memory preset?", "How do I get JSON?", "Who made Gemma?", "Hello!"):
        chat = [{"role": "user", "content": question}]
        ids = demo_tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        answers = [
            model.generate(**ids, do_sample=False, max_new_tokens=60).tolist() for model in (plain, widened)
        ]
        assert answers[0] == answers[1]
        assert len(answers[0][0]) > ids["input_ids"].shape[1] + 5
