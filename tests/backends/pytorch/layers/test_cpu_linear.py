"""Linear layers tuned to the processor: packed, the bits of `nn.Linear`; widened, those or to rounding."""

import pytest
import torch
from support.models import DEMO, demo_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.kernels import bfloat16 as bfloat16_kernel
from localgemma_cli.backends.pytorch.layers.cpu_linear import WidenedLinear, is_widened
from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable
from localgemma_cli.backends.pytorch.layers.packed_linear import PackedLinear, _replace, tune_linears
from localgemma_cli.backends.pytorch.weights.mmap_tensors import in_file

bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no bfloat16 kernels in oneDNN",
)

# there a packed product of one row adds in another order than PyTorch's own
packs = pytest.mark.skipif(is_widened(), reason="nothing is packed on this processor")


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
    _replace(packed, PackedLinear)
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
    assert in_file(table.weight)
    assert not [p for p in model.parameters() if p.data_ptr() == table.weight.data_ptr()]


@pytest.mark.parametrize("rows", [1, 3, 4, 64, 300])
@pytest.mark.parametrize("width", [192, 40_000])  # of which a piece is many rows, and few
@pytest.mark.parametrize("ours", [False, True], ids=["PyTorch's", "ours"])
@torch.inference_mode()
def test_a_widened_product_is_as_right_as_pytorchs(
    rows: int, width: int, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ours:
        monkeypatch.setattr(bfloat16_kernel, "takes", lambda width: False)
    elif not bfloat16_kernel.takes(width):
        pytest.skip("no product of ours here")
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
    kinds = {type(each) for name, each in model.named_modules() if name.endswith("_proj")}
    assert kinds == ({WidenedLinear} if is_widened() else {PackedLinear})


@torch.inference_mode()
def test_a_widened_models_answers_are_the_plain_ones() -> None:
    plain, widened = demo(torch.bfloat16), demo(torch.bfloat16)
    _replace(widened, WidenedLinear, lambda _: None)
    for question in ("What is the memory preset?", "How do I get JSON?", "Who made Gemma?", "Hello!"):
        chat = [{"role": "user", "content": question}]
        ids = demo_tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        answers = [
            model.generate(**ids, do_sample=False, max_new_tokens=60).tolist() for model in (plain, widened)
        ]
        assert answers[0] == answers[1]
        assert len(answers[0][0]) > ids["input_ids"].shape[1] + 5
