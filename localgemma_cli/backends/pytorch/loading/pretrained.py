"""Loads a model with transformers' own `from_pretrained`: its arguments, from the plan and from the files."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from localgemma_cli.backends.pytorch.layers.attention import implementation
from localgemma_cli.backends.pytorch.loading.assemble import incomplete_checkpoint
from localgemma_cli.backends.pytorch.loading.transformers_config import DECODER_NAMES, text_config
from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import read_checkpoint
from localgemma_cli.planning.layer_split import LayerShare
from localgemma_cli.planning.plan import LoadPlan

# transformers looks in this folder, which does not exist, for an adapter to attach by itself.
_NO_ADAPTER = "no-adapter"
# The tensor that accompanies a quantized weight in each of bitsandbytes' formats.
_COMPANIONS = {"nf4": ".weight.quant_state.bitsandbytes__nf4", "int8": ".SCB"}
_ENDS = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")  # all but the layers


def load_pretrained(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """Load with transformers.

    NotFoundError where tensors are missing or have another shape than config.json describes.
    """
    # bitsandbytes warns at every int8 product that it computes in float16; the plan has a reason for that.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with _progress_bars_to(progress):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            **pretrained_arguments(plan),
            **_file_arguments(plan, folder),
            offload_buffers=True,
            adapter_kwargs={"subfolder": _NO_ADAPTER},
            ignore_mismatched_sizes=True,  # reported below, in our own words
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    if info["missing_keys"]:  # transformers would fill these with random weights
        raise incomplete_checkpoint(folder, sorted(info["missing_keys"]))
    if info["mismatched_keys"]:
        raise _wrong_shape(folder, *min(info["mismatched_keys"]))
    return model


def pretrained_arguments(plan: LoadPlan) -> dict[str, Any]:
    """The arguments of `from_pretrained` that follow from the plan alone."""
    return {
        "dtype": getattr(torch, plan.dtype),
        "attn_implementation": implementation(plan),
        "quantization_config": _quantization(plan),
        **_placement(plan),
    }


def _quantization(plan: LoadPlan) -> BitsAndBytesConfig | None:
    offloads = plan.resident_layers is not None
    if plan.model.stored:  # the model's own config.json describes it
        return None
    if plan.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=offloads)
    if plan.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, plan.dtype),
            bnb_4bit_use_double_quant=plan.nested_quantization,
            llm_int8_enable_fp32_cpu_offload=offloads,
        )
    return None


def _placement(plan: LoadPlan) -> dict[str, Any]:
    if plan.processes == 1:
        return {"device_map": _device_map(plan)}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=plan.processes)}


def _device_map(plan: LoadPlan) -> dict[str, str]:
    """Everything on the plan's device, except for layers on other GPUs or offloaded."""
    if plan.shares:
        return _split_map(plan.shares)
    if plan.resident_layers is None:
        return {"": plan.device}
    offload = "cpu" if plan.offload == "host" else "disk"
    layers = {
        f"model.layers.{index}": plan.device if index < plan.resident_layers else offload
        for index in range(plan.model.architecture.layers)
    }
    return {**dict.fromkeys(_ENDS, plan.device), **layers}


def _split_map(shares: Sequence[LayerShare]) -> dict[str, str]:
    layers = {
        f"model.layers.{layer}": f"cuda:{share.index}"
        for share in shares
        for layer in range(share.first, share.last + 1)
    }
    return {**dict.fromkeys(_ENDS, f"cuda:{shares[0].index}"), **layers}


def _file_arguments(plan: LoadPlan, folder: Path) -> dict[str, Any]:
    """The model's config, corrected where it disagrees with the weights or the plan.

    A head that is missing from the weights is tied to the embedding, as in every Gemma. The compute dtype in
    a bitsandbytes checkpoint is that of the machine that quantized it.
    """
    config = text_config(folder)
    checkpoint = read_checkpoint(folder)
    if "lm_head.weight" not in checkpoint:
        config.tie_word_embeddings = True
    if plan.quantization in _COMPANIONS and plan.model.stored:
        if plan.quantization == "nf4":
            config.quantization_config["bnb_4bit_compute_dtype"] = plan.dtype
        config.quantization_config["llm_int8_skip_modules"] = _unquantized(checkpoint, plan.quantization)
    return {"config": config, "key_mapping": DECODER_NAMES}


def _unquantized(checkpoint: Collection[str], kind: str) -> list[str]:
    """Modules that bitsandbytes left in 16 bits: no companion tensor comes with their weight.

    The list in config.json has the names of the model that was quantized, which may be a multimodal one.
    """
    weights = {name.removesuffix(".weight") for name in checkpoint if name.endswith(".weight")}
    tied = {"lm_head"}  # stored as the embedding, which is never quantized
    return sorted(name for name in weights | tied if f"{name}{_COMPANIONS[kind]}" not in checkpoint)


def _wrong_shape(folder: Path, name: str, stored: Sequence[int], expected: Sequence[int]) -> NotFoundError:
    return NotFoundError(
        f"The weights in {folder} do not match its config.json: {name} has shape {tuple(stored)},"
        f" expected {tuple(expected)}.",
        "Download the model again, or use another format. Weights packed by other programs do not load.",
    )


@contextmanager
def _progress_bars_to(progress: ProgressSink) -> Iterator[None]:
    """Send transformers' progress bars to `progress`, and silence its warnings."""

    def bar(_factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Bar":
        return _Bar(progress, *args, **kwargs)

    verbosity = transformers_logging.get_verbosity()
    before = transformers_logging.set_tqdm_hook(bar)
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)
        transformers_logging.set_verbosity(verbosity)


class _Bar(transformers_logging.EmptyTqdm):
    """The part of tqdm's interface that transformers uses while it loads."""

    def __init__(
        self, progress: ProgressSink, iterable: Any = None, total: int | None = None, **_: Any
    ) -> None:
        super().__init__(iterable)
        self._progress = progress
        self._total = (
            total if total is not None else (len(iterable) if hasattr(iterable, "__len__") else None)
        )

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._iterator):
            self._progress(LoadProgress("loading", done, self._total, unit="tensors"))
            yield item
