"""Adapters as peft trains them, and as the program loads them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.checkpoints import plan_for
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.planning.plan import LoadPlan

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def stirred(adapted: PeftModel) -> PeftModel:
    """peft begins where an adapter changes nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                nn.init.normal_(parameter, std=0.1)
            elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.5)
    return adapted


def trained(folder: Path, base: Path, *, rows: int = 0, **form: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        torch.manual_seed(9)
        model.resize_token_embeddings(rows, mean_resizing=False)
    given = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **form}
    stirred(get_peft_model(model, LoraConfig(**given))).save_pretrained(folder)
    return folder


def planned(base: Path, adapter: Path, preset: str = "exact") -> LoadPlan:
    return plan_for(base, preset, adapter=str(adapter), dtype="float32")


def ours(base: Path, adapter: Path, preset: str = "exact") -> PreTrainedModel:
    return load_model(planned(base, adapter, preset), base, lambda _: None, adapter)
