"""Small real checkpoints for tests."""

import functools

import pytest

from localgemma_cli.models.catalog import demo_folder
from localgemma_cli.planning.hardware import probe

DEMO = demo_folder()


needs_int4 = pytest.mark.skipif(
    not probe("cpu").int4, reason="PyTorch's int4 product is not for this processor"
)


@functools.cache
def demo_fp32():
    """The bundled model in float32 with the reference's own attention; greedy ties do not decide tests."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()


@functools.cache
def demo_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)
