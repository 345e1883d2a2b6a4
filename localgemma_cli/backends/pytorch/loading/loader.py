"""LoadPlan and folder to model and tokenizer: safetensors only, no remote code, progress to a sink."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from localgemma_cli.backends.pytorch.layers.attention import implementation
from localgemma_cli.backends.pytorch.layers.packed_linear import tune_linears
from localgemma_cli.backends.pytorch.loading.assemble import incomplete
from localgemma_cli.backends.pytorch.loading.checkpoint_format import as_the_files_are, own_loader
from localgemma_cli.backends.pytorch.loading.completeness import require_complete
from localgemma_cli.errors import DoesNotFitError, NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.load_errors import loading
from localgemma_cli.planning.layer_split import Share
from localgemma_cli.planning.plan import LoadPlan

# Where transformers looks for an adapter to attach by itself; ours are attached below, or not wanted.
_NO_ADAPTER = "no-adapter"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def load_model(
    plan: LoadPlan, folder: Path, progress: ProgressSink, adapter: Path | None = None
) -> PreTrainedModel:
    """NotFoundError for a checkpoint that is damaged or incomplete, DoesNotFitError where memory runs out."""
    if adapter is None and all((folder / name).is_file() for name in _ADAPTER_FILES):
        raise NotFoundError(
            f"{folder} holds a whole model and an adapter besides.",
            f"For both: --adapter {folder}; for the model alone, move adapter_config.json out of the folder.",
        )
    progress(LoadProgress("preparing to load"))
    with loading("model", folder):
        if folder.is_dir():
            require_complete(folder, plan.model.name)
        try:
            return _loaded(plan, folder, progress, adapter)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise out_of_memory(plan) from error


def _loaded(plan: LoadPlan, folder: Path, progress: ProgressSink, adapter: Path | None) -> PreTrainedModel:
    if plan.streamed:
        from localgemma_cli.backends.pytorch.loading.load_4bit import load_quantized

        return load_quantized(plan, folder, progress)
    if own := own_loader(plan):
        return _ready(own(plan, folder, progress), plan, adapter, progress)
    # It warns at every product that int8 goes through float16; the plan has said so once.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with _loading_reported(progress):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            **pretrained_arguments(plan),
            **as_the_files_are(plan, folder),
            offload_buffers=True,
            adapter_kwargs={"subfolder": _NO_ADAPTER},
            ignore_mismatched_sizes=True,  # told below, in words of our own
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    if info["missing_keys"]:  # transformers would go on with random weights in their place
        raise incomplete(folder, sorted(info["missing_keys"]))
    if info["mismatched_keys"]:
        raise _other_shapes(folder, *min(info["mismatched_keys"]))
    return _ready(model, plan, adapter, progress)


def _other_shapes(folder: Path, name: str, stored: Sequence[int], expected: Sequence[int]) -> NotFoundError:
    return NotFoundError(
        f"The weights in {folder} are not those of its config.json: {name} is {tuple(stored)},"
        f" not {tuple(expected)}.",
        "Download the model again, or take it in another format; other programs' packed weights do not load.",
    )


def _ready(
    model: PreTrainedModel, plan: LoadPlan, adapter: Path | None, progress: ProgressSink
) -> PreTrainedModel:
    """With its adapter, and its plain linear layers as they are fastest."""
    if adapter is not None:
        from localgemma_cli.backends.pytorch.lora.adapters import attach

        progress(LoadProgress(f"{'merging' if plan.merges_adapter else 'attaching'} the adapter"))
        model = attach(model, adapter, merge=plan.merges_adapter)
    if plan.processes == 1:
        tune_linears(model, plan.compact, progress)
    return model.eval()


def pretrained_arguments(plan: LoadPlan) -> dict[str, Any]:
    """The plan in the words of `from_pretrained`, wherever the weights come from."""
    return {
        "dtype": getattr(torch, plan.dtype),
        "attn_implementation": implementation(plan),
        "quantization_config": _quantization(plan),
        **_whereabouts(plan),
    }


def out_of_memory(plan: LoadPlan) -> DoesNotFitError:
    return DoesNotFitError(
        f"Memory ran out with {plan.model.name} as {plan.preset} on {plan.device}.",
        "Close other programs, or take --preset memory, a smaller --context or a smaller model.",
    )


def _quantization(plan: LoadPlan) -> BitsAndBytesConfig | None:
    offloads = plan.resident_layers is not None
    if plan.model.stored:  # the repository's own config says how
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


def _whereabouts(plan: LoadPlan) -> dict[str, Any]:
    if plan.processes == 1:
        return {"device_map": _device_map(plan)}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=plan.processes)}


def _device_map(plan: LoadPlan) -> dict[str, str]:
    """Everything on the plan's device, but for the layers that are on other GPUs or offloaded."""
    if plan.shares:
        return _spread_map(plan.shares)
    if plan.resident_layers is None:
        return {"": plan.device}
    home = "cpu" if plan.offload == "host" else "disk"
    layers = {
        f"model.layers.{index}": plan.device if index < plan.resident_layers else home
        for index in range(plan.model.architecture.layers)
    }
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return {**dict.fromkeys(rest, plan.device), **layers}


def _spread_map(shares: Sequence[Share]) -> dict[str, str]:
    ends = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    layers = {
        f"model.layers.{layer}": f"cuda:{share.index}"
        for share in shares
        for layer in range(share.first, share.last + 1)
    }
    return {**dict.fromkeys(ends, f"cuda:{shares[0].index}"), **layers}


@contextmanager
def _loading_reported(progress: ProgressSink) -> Iterator[None]:
    """Send transformers' own progress bars to `progress`, and its notes nowhere."""

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
    """What of tqdm transformers uses while it loads."""

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
