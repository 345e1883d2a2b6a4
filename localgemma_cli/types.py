"""The values that a plan's settings can have, and parsing of those that users type."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from localgemma_cli.errors import UsageError

DeviceKind = Literal["cuda", "mps", "cpu"]
Dtype = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "nf4", "int4", "int8"]
# Formats of quantized checkpoints; the last three are never made here, and only llama.cpp runs the last one.
StoredQuantization = Literal["nf4", "int8", "awq", "w8a8", "gguf"]
WeightKind = Quantization | StoredQuantization
Attention = Literal["eager", "sdpa", "flash_attention_2", "llama.cpp"]
# The last two are llama.cpp's.
CacheKind = Literal["full", "int8", "sliding", "static", "f16", "q8_0"]
CompileMode = Literal[
    "none",
    "graph",  # not compiled; its kernels are recorded once as a CUDA graph and replayed
    "default",  # compiled
    "reduce-overhead",  # compiled, and recorded as a CUDA graph
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

Value = TypeVar("Value")


def parse_choice(text: str, choices: Mapping[str, Value], option: str) -> Value:
    """The value that `text` names; a UsageError that lists the choices if it names none."""
    if text not in choices:
        raise UsageError(f"{option} cannot be {text!r}.", f"Choose one of: {', '.join(choices)}.")
    return choices[text]
