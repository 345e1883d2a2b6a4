"""Models of a true shape with random weights: nothing to download, real speed and memory."""

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
_MARK = "localgemma-dummy.json"  # says that a folder is ours, and of which shape and seed
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class RandomTensor:
    """A bfloat16 tensor that is made when it is read, as a slice of a safetensors file would be.

    Its values are a stretch of one block of normal numbers, over and over: a copy is all they cost.
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
    """A stand-in for each parameter of `model`, which may be on the meta device; a tied head is one."""
    blocks = _blocks(model.config.hidden_size, seed, device)
    return {
        name: RandomTensor(
            parameter.shape, blocks[_kind(name, model)], random.Random(f"{seed} {name}").randrange(_BLOCK)
        )
        for name, parameter in model.named_parameters()
    }


def _blocks(hidden: int, seed: int, device: str) -> dict[str, torch.Tensor]:
    """Normal numbers by kind of tensor; three kinds are not plain, or greedy answers would compare nothing.

    A tied head favours the token it was just given, and attention over random keys is the same mean at every
    step: one token would be repeated for ever. So the embedding is small, signs are mixed before the head
    (Gemma's norms multiply by one plus their weight), and attention adds a third of what the MLP does.
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
    """Gemma 1 has a norm of that name as well, but it stands before its MLP."""
    if name == "model.embed_tokens.weight":
        return "embedding"
    if name == "model.norm.weight":
        return "head norm"
    after_attention = name.endswith("post_attention_layernorm.weight") and model.config.model_type != "gemma"
    return "attention norm" if after_attention else "plain"


def load_dummy(plan: LoadPlan, seed: int, **instead: object) -> PreTrainedModel:
    """The plan's model with random weights, made on its device, through transformers' own loading.

    `instead` holds arguments of `from_pretrained` that are not to be the plan's.
    """
    if plan.resident_layers is not None or plan.streamed:
        raise UsageError(
            f"{plan.model.name} as {plan.preset} reads its weights from files as it goes.",
            "Take --load-format dummy-file.",
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
    """config.json, bfloat16 shards and the demo's tokenizer; a folder that holds just this is kept."""
    mark = json.dumps({"architecture": asdict(architecture), "seed": seed}, sort_keys=True)
    if (folder / _MARK).is_file() and (folder / _MARK).read_text() == mark:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty, and not the checkpoint that is to be written.", "Name a new folder."
        )
    _require_space(folder, 2 * architecture.parameters)
    config = config_of(architecture)
    skeleton = _skeleton(config)
    config.architectures, config.dtype = [type(skeleton).__name__], torch.bfloat16
    config.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copyfile(demo_folder() / name, folder / name)
    _write_shards(random_weights(skeleton, seed, "cpu"), folder)
    (folder / _MARK).write_text(mark)  # last: a folder that was cut short has no mark


def config_of(architecture: Architecture) -> PreTrainedConfig:
    """What a config.json of that shape would say; anything else is its family's default."""
    if architecture.gemma4 is not None or architecture.family == "other":
        raise UsageError(
            "There are no dummy weights of Gemma 4, whose layers differ among themselves.",
            "Measure its real weights: leave --load-format out.",
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
    """Names and shapes without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskSpaceError(
            f"The dummy checkpoint takes {format_bytes(needed)}, and {folder} has {format_bytes(free)} free.",
            "Name a folder on a larger disk, or take --load-format dummy.",
        )


def _write_shards(weights: Mapping[str, RandomTensor], folder: Path) -> None:
    """One shard's tensors exist at a time."""
    shards = list(_shards(weights))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: weights[name][...] for name in names}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = sum(2 * tensor.shape.numel() for tensor in weights.values())
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))


def _shards(weights: Mapping[str, RandomTensor]) -> Iterator[list[str]]:
    """Names in order, together at most `_SHARD_BYTES`; a larger tensor has a shard of its own."""
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
