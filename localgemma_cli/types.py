"""The words a plan is made of, and how a user's spelling becomes one of them."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from localgemma_cli.errors import UsageError

DeviceKind = Literal["cuda", "mps", "cpu"]
Dtype = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "nf4", "int4", "int8"]
# What a checkpoint can already be in; the last three are never made here.
StoredQuantization = Literal["nf4", "int8", "awq", "w8a8", "gguf"]
WeightKind = Quantization | StoredQuantization
Attention = Literal["eager", "sdpa", "flash_attention_2"]
CacheKind = Literal["full", "int8", "sliding", "static"]
CompileMode = Literal[
    "none",
    "graph",  # as written, its kernels recorded once and replayed
    "default",  # compiled
    "reduce-overhead",  # compiled, and recorded
]
Assistant = Literal["none", "lookup"]
Offload = Literal["none", "host", "disk"]
OffloadRule = Literal["none", "host", "disk", "auto"]
PromptForm = Literal["gemma", "alpaca", "alpaca-chat", "raw"]

DEVICES: Mapping[str, DeviceKind] = {"cuda": "cuda", "mps": "mps", "cpu": "cpu"}
DTYPES: Mapping[str, Dtype] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}
QUANTIZATIONS: Mapping[str, Quantization] = {"none": "none", "nf4": "nf4", "int4": "int4", "int8": "int8"}
ATTENTIONS: Mapping[str, Attention] = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attention_2": "flash_attention_2",
}
ASSISTANTS: Mapping[str, Assistant] = {"none": "none", "lookup": "lookup"}
PROMPT_FORMS: Mapping[str, PromptForm] = {
    "gemma": "gemma",
    "alpaca": "alpaca",
    "alpaca-chat": "alpaca-chat",
    "raw": "raw",
}
DTYPE_BYTES: Mapping[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}

Choice = TypeVar("Choice")


def chosen(value: str, choices: Mapping[str, Choice], what: str) -> Choice:
    """What `value` stands for; a UsageError that lists the choices where it stands for nothing."""
    if value not in choices:
        raise UsageError(f"{what} cannot be {value!r}.", f"Choose one of: {listed(choices)}.")
    return choices[value]


def listed(words: Iterable[str]) -> str:
    return ", ".join(words)
