"""Models of a real shape with random weights: real speed and memory without a download."""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from localgemma_cli.backends.pytorch.loading.pretrained import pretrained_arguments
from localgemma_cli.errors import DiskSpaceError, UsageError
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.catalog import demo_folder
from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.units import format_bytes

_STD = 0.02  # Gemma's own initializer_range
_BLOCK = 4_194_301  # numbers; prime, so that no two rows of a tensor are the same piece of the block
_SHARD_BYTES = 1 << 30
_INDEX = "model.safetensors.index.json"
_MARK = "localgemma-dummy.json"  # marks a folder as ours, with its shape and seed
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class RandomTensor:
    """A bfloat16 tensor made on access, with the interface of a slice of a safetensors file.

    Its values repeat one block of normal numbers from a random offset, so that making it costs one copy.
    """

    def __init__(self, shape: Sequence[int], block: torch.Tensor, start: int) -> None:
        self.shape = torch.Size(shape)
        self._block, self._start = block, start

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return "BF16"

    def __getitem__(self, index: Any) -> torch.Tensor:
        flat = self._block.new_empty(self.shape.numel())
        filled, source = 0, self._block[self._start :]
        while filled < len(flat):
            piece = source[: len(flat) - filled]
            flat[filled : filled + len(piece)] = piece
            filled, source = filled + len(piece), self._block
        return flat.view(self.shape)[index]


def random_weights(model: PreTrainedModel, seed: int, device: str) -> dict[str, RandomTensor]:
    """A random tensor for each parameter of `model`, which may be on the meta device."""
    blocks = _blocks(model.config.hidden_size, seed, device)
    return {
        name: RandomTensor(
            parameter.shape, blocks[_kind(name, model)], random.Random(f"{seed} {name}").randrange(_BLOCK)
        )
        for name, parameter in model.named_parameters()
    }


def _blocks(hidden: int, seed: int, device: str) -> dict[str, torch.Tensor]:
    """Normal numbers by kind of tensor, scaled so that greedy answers vary and can be compared.

    With plain numbers a tied head favours the last token, and attention over random keys is the same mean at
    every step: one token would repeat forever. So the embedding is small, signs are mixed before the head
    (Gemma's norms multiply by one plus their weight), and attention adds a third of what the MLP adds.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(_BLOCK, generator=generator)
    blocks = {
        "plain": normal * _STD,
        "embedding": normal * 0.5 * hidden**-0.5,
        "head norm": normal.sign() - 1,
        "attention norm": normal * _STD - 0.7,
    }
    return {kind: block.to(device, torch.bfloat16) for kind, block in blocks.items()}


def _kind(name: str, model: PreTrainedModel) -> str:
    """The block for a parameter; Gemma 1's post_attention_layernorm comes before its MLP, so it is plain."""
    if name == "model.embed_tokens.weight":
        return "embedding"
    if name == "model.norm.weight":
        return "head norm"
    after_attention = name.endswith("post_attention_layernorm.weight") and model.config.model_type != "gemma"
    return "attention norm" if after_attention else "plain"


def load_dummy(plan: LoadPlan, seed: int, **instead: object) -> PreTrainedModel:
    """The plan's model with random weights, made on its device, through transformers' own loading.

    `instead` replaces arguments of `from_pretrained` that the plan would set.
    """
    if plan.resident_layers is not None or plan.streamed:
        raise UsageError(
            f"{plan.model.name} with preset {plan.preset} streams its weights from files.",
            "Use --load-format dummy-file.",
        )
    config = config_of(plan.model.architecture)
    skeleton = _skeleton(config)
    model: PreTrainedModel = type(skeleton).from_pretrained(
        None,
        config=config,
        state_dict=random_weights(skeleton, seed, plan.device),
        **{**pretrained_arguments(plan), **instead},
    )
    return model.eval()


def write_checkpoint(architecture: Architecture, folder: Path, seed: int) -> None:
    """Write config.json, bfloat16 shards and the demo's tokenizer; reuse a folder that already has them."""
    mark = json.dumps({"architecture": asdict(architecture), "seed": seed}, sort_keys=True)
    if (folder / _MARK).is_file() and (folder / _MARK).read_text() == mark:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds another checkpoint.", "Use a new folder.")
    _require_space(folder, 2 * architecture.parameters)
    config = config_of(architecture)
    skeleton = _skeleton(config)
    config.architectures, config.dtype = [type(skeleton).__name__], torch.bfloat16
    config.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copyfile(demo_folder() / name, folder / name)
    _write_shards(random_weights(skeleton, seed, "cpu"), folder)
    (folder / _MARK).write_text(mark)  # last: an interrupted write leaves no mark


def config_of(architecture: Architecture) -> PreTrainedConfig:
    """The config of that shape; other values are its family's defaults."""
    if architecture.gemma4 is not None or architecture.family == "other":
        raise UsageError(
            "Dummy weights do not support Gemma 4, whose layers differ in shape.",
            "Remove --load-format to measure the real weights.",
        )
    values: dict[str, object] = {
        "vocab_size": architecture.vocabulary,
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.ffn,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.context_length,
        "tie_word_embeddings": architecture.tied_head,
    }
    if architecture.sliding_window is not None:
        values["sliding_window"] = architecture.sliding_window
    config: PreTrainedConfig = AutoConfig.for_model(architecture.family, **values)
    return config


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskSpaceError(
            f"The dummy checkpoint needs {format_bytes(needed)}; {format_bytes(free)} are free in {folder}.",
            "Use a folder on a larger disk, or use --load-format dummy.",
        )


def _write_shards(weights: Mapping[str, RandomTensor], folder: Path) -> None:
    """Write the shards and their index, with one shard in memory at a time."""
    shards = list(_shards(weights))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: weights[name][...] for name in names}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = sum(2 * tensor.shape.numel() for tensor in weights.values())
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))


def _shards(weights: Mapping[str, RandomTensor]) -> Iterator[list[str]]:
    """Tensor names by shard, at most `_SHARD_BYTES` each; a larger tensor gets its own shard."""
    names: list[str] = []
    size = 0
    for name, tensor in weights.items():
        added = 2 * tensor.shape.numel()
        if names and size + added > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += added
    yield names
