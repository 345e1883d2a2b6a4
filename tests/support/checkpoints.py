"""Tiny Gemmas on disk in the layouts that their makers publish."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.models import DEMO, demo_tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    PreTrainedModel,
)

from localgemma_cli.backends.pytorch.layers.cpu_linear import CompactLinear, WidenedLinear
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.models.resolve import resolve, resolve_adapted
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

CONFIGS = {"gemma": GemmaConfig, "gemma2": Gemma2Config, "gemma3_text": Gemma3TextConfig}
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 384,
    "vocab_size": 2048,  # the demo tokenizer's
    "max_position_embeddings": 256,
}
SLIDING = {"sliding_window": 16, "query_pre_attn_scalar": 64}


def tiny(family: str = "gemma2", seed: int = 0, **more: Any) -> PreTrainedModel:
    """Random weights, large enough that a greedy answer varies."""
    config = CONFIGS[family](**(SHAPE | ({} if family == "gemma" else SLIDING) | more))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.02 if "embed" in name else 0.15)
    return model.eval()


def add_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (DEMO / name).is_file():
            shutil.copy(DEMO / name, folder / name)
    return folder


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """One `model.safetensors` without an index, as small repositories have it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return add_tokenizer(folder)


def dense_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a checkpoint holds; a tied head is left out."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def is_linear(name: str) -> bool:
    return name.startswith("model.layers.") and name.endswith("proj.weight")


def plan_for(
    folder: Path, preset: str | None = "memory", adapter: str | None = None, **more: Any
) -> LoadPlan:
    if adapter is not None:
        source = resolve_adapted(str(folder), adapter, revision=None, offline=True)
    else:
        source = resolve(str(folder), revision=None, offline=True)
    return make_plan(source.facts, preset, probe("cpu"), Overrides(device="cpu", **more), load_presets())


def loaded(folder: Path, preset: str | None = "memory", **more: Any) -> PreTrainedModel:
    return load_model(plan_for(folder, preset, **more), folder, lambda _: None)


def prompt_ids() -> torch.Tensor:
    turn = [{"role": "user", "content": "What does the memory preset do?"}]
    rendered = demo_tokenizer().apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
    ids: torch.Tensor = rendered["input_ids"]
    return ids


def greedy(model: nn.Module, tokens: int = 24, prompt: torch.Tensor | None = None) -> list[int]:
    """Ids of an answer of exactly so many tokens."""
    ids = prompt_ids() if prompt is None else prompt
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    answer: list[int] = out[0, ids.shape[1] :].tolist()
    return answer


def logits(model: nn.Module, prompt: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(prompt_ids() if prompt is None else prompt).logits.float()
    return found


def same_logits(ours: nn.Module, reference: nn.Module) -> bool:
    """Whether logits are equal; to rounding where bfloat16 is widened, as sums are in another order then."""
    got, expected = logits(ours), logits(reference)
    if any(isinstance(each, WidenedLinear | CompactLinear) for each in ours.modules()):
        return bool((got - expected).norm() < 0.02 * expected.norm())
    return torch.equal(got, expected)


class Nowhere:
    """A file for quantized weights that counts, and keeps nothing."""

    size = 0

    def write(self, data: memoryview) -> int:
        self.size += data.nbytes
        return data.nbytes
