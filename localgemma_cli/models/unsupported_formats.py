"""Formats of weights that are not supported, recognised by file names, and what to use instead."""

import re
from collections.abc import Collection
from pathlib import Path

from localgemma_cli.errors import NotFoundError

SUPPORTED_FORMS_HINT = (
    "Use the model's unquantized repository, or one in bitsandbytes NF4 or int8, AWQ (GEMM) or W8A8."
)
_CONVERT = (
    "Convert it if you trust it (transformers' save_pretrained writes safetensors), or use another model."
)
_OTHER = "Use a model or a --revision with .safetensors files."
_BY_NAME = (  # a pattern of file names, what they are, and what to do
    (
        r".*\.rkllm",
        "for Rockchip's boards (.rkllm)",
        "Serve it on the board, and pass its address with --endpoint.",
    ),
    (r"openvino_.*", "for OpenVINO", _OTHER),
    (r".*\.(onnx|onnx_data)", "as ONNX", _OTHER),
    (r".*\.(tflite|task|litertlm)", "for LiteRT and MediaPipe", _OTHER),
    (r"tf_model.*|.*\.(keras|weights\.h5)", "for TensorFlow or Keras", _OTHER),
    (r".*\.msgpack", "for Flax", _OTHER),
    (r".*\.sbs", "for gemma.cpp", _OTHER),
    (r".*\.npz", "for MLX", _OTHER),
    (r".*\.nemo", "for NeMo", _OTHER),
    (r".*\.(mlmodel|mlpackage|mlmodelc)", "for Core ML", _OTHER),
)
_PICKLES = r".*\.(bin|pt|pth|ckpt)"
_PACKED = {"quantize_config.json": "GPTQ", "hf_quant_config.json": "NVIDIA's ModelOpt form"}


class GgufOnlyError(NotFoundError):
    """A repository or folder whose weights are GGUF files."""


def is_adapter(names: Collection[str]) -> bool:
    """Whether these are the files of an adapter and not of a complete model."""
    is_whole = has_weights(names) or any(name.endswith(".safetensors.index.json") for name in names)
    return "adapter_config.json" in names and not is_whole


def refuse_unsupported_formats(names: Collection[str], model: str, *, on_disk: Path | None = None) -> None:
    """Raise NotFoundError if no weights are in a supported format; `on_disk`: their folder, if local."""
    if packed := next((_PACKED[name] for name in sorted(names) if name in _PACKED), None):
        raise NotFoundError(
            f"{model} is stored in an unsupported quantized form ({packed}).",
            SUPPORTED_FORMS_HINT,
        )
    if has_weights(names) or is_adapter(names):
        return
    if files := sorted(name for name in names if name.lower().endswith(".gguf")):
        raise _gguf_only(model, files, on_disk)
    for pattern, what, hint in _BY_NAME:
        if any(re.fullmatch(pattern, name) for name in names):
            raise NotFoundError(f"{model} has weights only {what}, which localgemma does not support.", hint)
    if any(re.fullmatch(_PICKLES, name) for name in names):
        raise NotFoundError(
            f"{model} has no safetensors weights, the only supported format: pickle files can run code.",
            _CONVERT if on_disk else _OTHER,
        )


def has_weights(names: Collection[str]) -> bool:
    """Whether a complete model's safetensors files are among them."""
    return any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)


def _gguf_only(model: str, files: list[str], on_disk: Path | None) -> GgufOnlyError:
    return GgufOnlyError(
        f"{model} has weights as GGUF only.",
        f"Name the file itself: localgemma -m {on_disk / files[0]}"
        if on_disk
        else f"Name one of its files: localgemma -m {model}:{files[0]}",
    )
