"""Find how much each input feature of a linear layer counts: its mean square while the model reads a text.

The unquantized model reads the text once, in float32. Its weights stay in the checkpoint's mapped files, and
each is released after its product.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable
from localgemma_cli.backends.pytorch.loading.assemble import empty_model
from localgemma_cli.backends.pytorch.loading.quantized_file import map_stored
from localgemma_cli.backends.pytorch.loading.transformers_config import text_config
from localgemma_cli.backends.pytorch.weights.mmap_tensors import is_mapped, release_pages
from localgemma_cli.errors import first_line
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import EMBEDDING, HEAD, Stored
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

_TOKENS = 256  # of the text, at most
_WIDENED = 1 << 20  # weights at a time: 4 MB in float32, which the processor's caches hold
_FLOOR = 1e-3  # of a layer's mean: what a feature that the text never uses still counts

TEXT = """\
The oldest clock in the town hall had not been right for years, and nobody minded. "It is correct twice \
a day," the caretaker said, "which is more than can be promised of the council." In 1874 a storm broke \
its glass; the repair cost £12, a good price, and took until spring.

Q: How do I sort a list of names by their length in Python?
A: Use the `key` argument:

```python
names = ["Maria", "Li", "Alexander"]
for name in sorted(names, key=len, reverse=True):
    print(f"{name}: {len(name)}")
```

Water boils at 100 °C at sea level, but at about 90 °C on a mountain 3,000 m high, since the air there \
presses less on its surface. Three things follow: 1. tea is weaker, 2. potatoes take longer, 3. a lid \
helps.

Der Zug nach Wien fährt um 9 Uhr 40 ab. ¿Dónde está la biblioteca? Je voudrais deux billets, s'il vous \
plaît. 今日は天気がいいですね。

Dear Ms. Okafor, thank you for your letter of 3 March. I am sorry to hear that the parcel arrived \
damaged. We will send you another one free of charge, and you need not return the first.
"""


def measure_importance(
    plan: LoadPlan, folder: Path, checkpoint: Mapping[str, Stored], progress: ProgressSink
) -> Mapping[str, Tensor]:
    """By linear layer, the mean square [in] float32 of each input feature, all above 0.

    Empty where the model cannot read the text, as without a tokenizer: weights then all count the same.
    """
    try:
        found = _read_text(plan, folder, checkpoint, progress)
    except Exception as error:  # the model can be quantized without
        progress(LoadProgress(f"quantizing without calibration: {first_line(error)}"))
        return {}
    floors = {name: squares.mean() * _FLOOR for name, squares in found.items()}
    if not all(0 < float(floor) < torch.inf for floor in floors.values()):
        progress(LoadProgress("quantizing without calibration: the model's numbers overflow"))
        return {}
    return {name: squares + floors[name] for name, squares in found.items()}


def _read_text(
    plan: LoadPlan, folder: Path, checkpoint: Mapping[str, Stored], progress: ProgressSink
) -> Mapping[str, Tensor]:
    tokenizer = load_tokenizer(folder)
    start = tokenizer.id_of(tokenizer.bos or "")
    ids = torch.tensor([([] if start is None else [start]) + tokenizer.encode(TEXT)[:_TOKENS]])
    model = empty_model(plan, text_config(folder), torch.float32)
    observers = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and f"{name}.weight" != HEAD:
            observers[name] = _Observer(map_stored(checkpoint[f"{name}.weight"]))
            model.set_submodule(name, observers[name])
    for name, value in list(model.named_parameters()):
        if value.is_meta and name not in (EMBEDDING, HEAD):
            owner, _, leaf = name.rpartition(".")
            norm = nn.Parameter(map_stored(checkpoint[name]).float(), requires_grad=False)
            setattr(model.get_submodule(owner), leaf, norm)
    decoder = model.model
    scale = getattr(decoder.embed_tokens, "embed_scale", None)
    decoder.embed_tokens = EmbeddingTable(map_stored(checkpoint[EMBEDDING]), torch.float32, scale)
    for done, layer in enumerate(decoder.layers):
        layer.register_forward_pre_hook(
            lambda *_, done=done: progress(
                LoadProgress("calibrating", done, len(decoder.layers), unit="tensors")
            )
        )
    with torch.inference_mode():
        last = decoder(input_ids=ids, use_cache=False).last_hidden_state
    squares = {name: observer.squares for name, observer in observers.items()}
    return squares | {HEAD.removesuffix(".weight"): _mean_squares(last)}


def _mean_squares(inputs: Tensor) -> Tensor:
    """[1, tokens, in] -> [in], over all tokens but the first, whose numbers are by far the largest."""
    return inputs[0, 1:].float().square().mean(0)


class _Observer(nn.Module):
    """A linear layer without a bias over a stored weight [out, in]; keeps its inputs' mean squares."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.stored = (weight,)  # no buffer: the model has no other tensors of its size
        self.squares = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        (weight,) = self.stored
        self.squares = _mean_squares(inputs)
        pieces = weight.split(max(1, _WIDENED // weight.shape[1]))
        product = torch.cat([inputs @ piece.float().T for piece in pieces], dim=-1)
        if is_mapped(weight):
            release_pages(weight)
        return product
