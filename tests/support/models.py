"""Small real checkpoints for tests."""

import functools
from pathlib import Path

import localgemma_cli.demo

DEMO = Path(localgemma_cli.demo.__file__).parent / "model"


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
