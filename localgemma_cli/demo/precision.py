"""What fewer bits cost on the corpus' held-out questions: `python -m localgemma_cli.demo.precision`.

The same tokens are read by the unquantized model and by one of whose layers, head and KV cache some are in
fewer bits.
With a checkpoint of random weights only the errors say something: there, no token is likelier than another.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.conversation import Message
from localgemma_cli.demo.reading import read_corpus, select
from localgemma_cli.models.catalog import demo_folder
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.types import CacheKind

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """`ids` of a prompt and its answer; the answer begins at `start`."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Precision:
    """Means over tokens, against the unquantized model.

    `error` is of logits, as root mean square over their standard deviation; `divergence` is Kullback-Leibler
    in nats; `agreement` is how often the likeliest token is the same.
    """

    layers: str
    head: str
    error: float
    divergence: float
    agreement: float
    perplexity: float


def samples(prompter: Prompter, limit: int | None) -> list[Sample]:
    """One held-out question of each topic, with the topic's first answer."""
    topics = [topic for topic in select(read_corpus(), "test").topics if topic.questions and topic.answers]
    return [_sample(prompter, topic.questions[0], topic.answers[0]) for topic in topics[:limit]]


def _sample(prompter: Prompter, question: str, answer: str) -> Sample:
    prompt = prompter.encode([Message("user", question)])
    said = prompter.tokenizer.encode(answer)
    return Sample((*prompt, *said), len(prompt))


@torch.inference_mode()
def measure(folder: Path, limit: int | None = None) -> Iterator[Precision]:
    """The unquantized model first, then each pair of layers or cache, and head; int4 where it runs here."""
    asked = samples(Prompter(load_tokenizer(folder)), limit)
    kinds = ("nf4", "int4") if probe("cpu").int4 else ("nf4",)
    exact, packed = _load(folder, "none"), {kind: _load(folder, kind) for kind in kinds}
    table = exact.get_input_embeddings().weight
    heads: dict[str, Head] = {"bfloat16": exact.lm_head, "int8": _int8(table)}
    heads |= {kind: model.lm_head for kind, model in packed.items()}
    states = {"bfloat16": _states(exact, asked, "full")}
    states |= {kind: _states(model, asked, "full") for kind, model in packed.items()}
    states["int8 kv"] = _states(exact, asked, "int8")
    targets = torch.tensor([token for sample in asked for token in sample.ids[sample.start :]])
    cap = exact.config.final_logit_softcapping
    truth = _logits(states["bfloat16"], heads["bfloat16"], cap)
    for layers, inputs in states.items():
        for name, head in heads.items():
            yield _compared(layers, name, _logits(inputs, head, cap), truth, targets)


def _load(folder: Path, quantization: str) -> PreTrainedModel:
    facts = resolve(str(folder), revision=None, offline=True).facts
    overrides = Overrides(dtype="bfloat16", quantization=quantization)
    plan = make_plan(facts, "memory", probe("cpu"), overrides, load_presets())
    return load_model(plan, folder, ignore_progress)


def _int8(weight: Tensor) -> Head:
    """A head rounded to 8 bits, with a scale per row; a part at a time, for copies in fp32 are large."""
    rounded = torch.cat([_rounded(rows.float()).to(weight.dtype) for rows in weight.split(1 << 14)])
    return lambda states: nn.functional.linear(states, rounded)


def _rounded(rows: Tensor) -> Tensor:
    scales = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scales).round() * scales


def _states(model: PreTrainedModel, asked: Sequence[Sample], cache: CacheKind) -> Tensor:
    """What the head is given for each token of the answers, [tokens, hidden]."""

    def read(ids: Sequence[int]) -> Tensor:
        kept = KVCache(model.config, cache, len(ids)).cache
        states: Tensor = model.model(torch.tensor([ids]), past_key_values=kept).last_hidden_state
        return states[0]

    return torch.cat([read(sample.ids)[sample.start - 1 : -1] for sample in asked])


def _logits(states: Tensor, head: Head, cap: float | None) -> Tensor:
    logits = head(states).float()
    return logits if cap is None else (logits / cap).tanh() * cap


def _compared(layers: str, head: str, logits: Tensor, truth: Tensor, targets: Tensor) -> Precision:
    chances, true_chances = logits.log_softmax(-1), truth.log_softmax(-1)
    divergence = (true_chances.exp() * (true_chances - chances)).sum(-1).mean()
    return Precision(
        layers=layers,
        head=head,
        error=float((logits - truth).square().mean().sqrt() / truth.std(dim=-1).mean()),
        divergence=float(divergence),
        agreement=float((logits.argmax(-1) == truth.argmax(-1)).float().mean()),
        perplexity=exp(float(nn.functional.nll_loss(chances, targets))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare 4-bit layers and heads with the unquantized model.")
    parser.add_argument("--model", type=Path, default=demo_folder())
    parser.add_argument("--limit", type=int, help="at most so many answers")
    arguments = parser.parse_args()
    sys.stdout.write("layers    head      logit error  KL nats  same token  perplexity\n")
    for row in measure(arguments.model, arguments.limit):
        sys.stdout.write(
            f"{row.layers:8}  {row.head:8}  {row.error:11.2%}  {row.divergence:7.4f}"
            f"  {row.agreement:10.2%}  {row.perplexity:10.3f}\n"
        )


if __name__ == "__main__":
    main()
