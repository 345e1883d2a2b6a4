"""Small real checkpoints for tests."""

import copy
import functools
from typing import Any

from localgemma_cli.models.catalog import demo_folder
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

DEMO = demo_folder()


@functools.cache
def demo_fp32():
    """The bundled model in float32 with the reference's own attention; greedy ties do not decide tests."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()


@functools.cache
def demo_tokenizer():
    """The bundled model's tokenizer as transformers loads it: the reference."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)


@functools.cache
def own_tokenizer() -> Tokenizer:
    """The bundled model's tokenizer as the program loads it."""
    return load_tokenizer(DEMO)


def converted(tokenizer: Any) -> Tokenizer:
    """A copy of one of transformers' tokenizers as the program's own."""
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {"default": templates} if templates else {}
    library = copy.deepcopy(tokenizer.backend_tokenizer)
    return Tokenizer(library, tokenizer.special_tokens_map, templates)
