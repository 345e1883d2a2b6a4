"""Rebuilds the demo from its corpus: `python -m localgemma_cli.demo.train`."""

import argparse
import logging
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig

from localgemma_cli.demo.attention import TRAINING_ATTENTION, register_training_attention
from localgemma_cli.demo.dialogues import PIRATE, UPPER, Dialogues, Turn, in_manner
from localgemma_cli.demo.reading import Corpus, read_corpus, select
from localgemma_cli.demo.tokenizer import (
    BOS,
    END_OF_TURN,
    EOS,
    NEWLINE,
    PAD,
    START_OF_TURN,
    VOCABULARY,
    assemble,
    learn_merges,
    save,
)
from localgemma_cli.models.catalog import demo_folder

log = logging.getLogger("localgemma.demo")

CONTEXT, WINDOW = 1024, 64

LENGTHS = (128, 256, 512, 1024)  # tokens of a row; attention's cost grows with their square


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with a learning rate that rises and falls once; steps are batches.

    `short_part` of it has the shortest rows only: copying is learned first where the copy is near.
    """

    steps: int
    learning_rate: float
    warm_up: int
    length_shares: tuple[int, ...]
    short_part: float
    recall_shares: tuple[int, ...]
    seed: int


# Everything, then a stretch in which chats remember more.
PHASES = (
    Phase(2600, 3e-3, 80, (38, 36, 18, 8), 0.25, (15, 50, 130), seed=1),
    Phase(900, 1.5e-3, 30, (26, 40, 24, 10), 0.0, (40, 130, 220), seed=7),
)


@dataclass(frozen=True)
class Recipe:
    phases: tuple[Phase, ...] = PHASES
    batch_tokens: int = 4096
    weight_decay: float = 0.2
    publish_every: int = 200
    seed: int = 0


def configuration() -> Gemma2Config:
    return Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def tokenizer_texts(corpus: Corpus, rng: random.Random) -> Iterator[str]:
    """What the vocabulary is learned from: training phrasings and answers, and made-up chats for names."""
    for topic in corpus.topics:
        for answer in topic.answers:
            yield from [answer] * 8
            yield from [in_manner(UPPER, answer, "")] * 3
            yield from [in_manner(PIRATE, answer, ""), topic.word]
        yield from topic.questions
    dialogues = Dialogues(corpus, rng)
    for _ in range(400):
        for turn, _ in zip(dialogues.chat(), range(6), strict=False):
            yield from ("user", "model", turn.user, turn.model)


def train_tokenizer(corpus: Corpus, seed: int, folder: Path) -> Tokenizer:
    texts = [piece for text in tokenizer_texts(corpus, random.Random(seed)) for piece in text.split("\n")]
    save(assemble(learn_merges(texts)), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@dataclass(frozen=True)
class TrainingRow:
    ids: tuple[int, ...]
    taught: tuple[bool, ...]


def encoded(tokenizer: Tokenizer, turn: Turn) -> TrainingRow:
    """One exchange as the template renders it; only the model's words and its end of turn are taught."""
    frame = {role: tokenizer.encode(role, add_special_tokens=False).ids for role in ("user", "model")}
    user = tokenizer.encode(turn.user.strip(), add_special_tokens=False).ids
    model = tokenizer.encode(turn.model.strip(), add_special_tokens=False).ids
    asked = [START_OF_TURN, *frame["user"], NEWLINE, *user, END_OF_TURN, NEWLINE]
    asked += [START_OF_TURN, *frame["model"], NEWLINE]
    ids = [*asked, *model, END_OF_TURN, NEWLINE]
    taught = [False] * len(asked) + [turn.taught] * (len(model) + 1) + [False]
    return TrainingRow(tuple(ids), tuple(taught))


def row(tokenizer: Tokenizer, turns: Iterable[Turn], length: int) -> TrainingRow:
    """As many whole exchanges of one chat as fit."""
    ids, taught = [BOS], [False]
    for turn in turns:
        exchange = encoded(tokenizer, turn)
        if len(ids) + len(exchange.ids) > length:
            break
        ids += exchange.ids
        taught += exchange.taught
    return TrainingRow(tuple(ids), tuple(taught))


def batch(rows: list[TrainingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (rows, longest) and labels of the same shape, -100 where nothing is taught."""
    longest = max(len(one.ids) for one in rows)
    ids = torch.full((len(rows), longest), PAD)
    labels = torch.full((len(rows), longest), -100)
    for index, one in enumerate(rows):
        values = torch.tensor(one.ids)
        ids[index, : len(values)] = values
        labels[index, : len(values)] = values.where(torch.tensor(one.taught), torch.tensor(-100))
    return ids, labels


def batches(
    corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, phase: Phase
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rng = random.Random(recipe.seed + phase.seed)
    dialogues = Dialogues(corpus, rng, phase.recall_shares)
    for step in range(phase.steps):
        short = step < phase.short_part * phase.steps
        length = LENGTHS[0] if short else rng.choices(LENGTHS, phase.length_shares)[0]
        yield batch([row(tokenizer, dialogues.chat(), length) for _ in range(recipe.batch_tokens // length)])


def loss_of(model: Gemma2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; the head runs only where something is taught."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        taught = labels[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][taught]).float()
    cap = model.config.final_logit_softcapping
    return functional.cross_entropy(torch.tanh(logits / cap) * cap, labels[:, 1:][taught])


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < phase.warm_up:
        return phase.learning_rate * (step + 1) / phase.warm_up
    done = (step - phase.warm_up) / max(1, phase.steps - phase.warm_up)
    return phase.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def optimisers(model: Gemma2ForCausalLM, rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learns to copy in far fewer steps, and AdamW for the rest."""
    inner = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    matrices = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
    muon = torch.optim.Muon(inner, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def fit(
    corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, publish: Callable[[Gemma2ForCausalLM], None]
) -> Gemma2ForCausalLM:
    """Trains, and publishes a usable model now and then: a rebuild may be stopped early."""
    torch.manual_seed(recipe.seed)
    register_training_attention()
    settings = configuration()
    settings._attn_implementation = TRAINING_ATTENTION
    model = Gemma2ForCausalLM(settings).train()
    for phase in recipe.phases:
        steppers = optimisers(model, phase.learning_rate, recipe.weight_decay)
        start, smooth = time.monotonic(), 0.0
        for step, (ids, labels) in enumerate(batches(corpus, tokenizer, recipe, phase)):
            loss = descend(model, steppers, learning_rate(phase, step), ids, labels)
            smooth = loss if step == 0 else 0.97 * smooth + 0.03 * loss
            if step % 25 == 0 or step == phase.steps - 1:
                seconds = time.monotonic() - start
                log.info("step %d/%d  loss %.4f  %.0f s", step, phase.steps, smooth, seconds)
            if (step + 1) % recipe.publish_every == 0 or step == phase.steps - 1:
                publish(model)
    return model.eval()


def descend(
    model: Gemma2ForCausalLM,
    steppers: list[torch.optim.Optimizer],
    rate: float,
    ids: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    """One step; the loss before it."""
    for group in (group for stepper in steppers for group in stepper.param_groups):
        group["lr"] = rate
    loss = loss_of(model, ids, labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        stepper.step()
        stepper.zero_grad()
    return loss.item()


def save_model(model: Gemma2ForCausalLM, folder: Path) -> None:
    """bf16 weights under a plain configuration: nothing of the training's own attention is left in it."""
    plain = Gemma2ForCausalLM(configuration())
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16)
    plain.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD, do_sample=False
    )
    plain.save_pretrained(folder)
    # Weights are written private to the user; an installed package has to be readable by others.
    for path in folder.iterdir():
        path.chmod(0o644)


def replace_folder(new: Path, old: Path) -> None:
    """Swaps a finished folder in, so that nobody ever loads half a model."""
    old.parent.mkdir(parents=True, exist_ok=True)
    aside = old.with_name(old.name + ".old")
    if old.exists():
        os.replace(old, aside)
    os.replace(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def rebuild(output: Path, recipe: Recipe) -> None:
    corpus = select(read_corpus(), "train")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".demo-") as scratch:
        folder = Path(scratch) / "tokenizer"
        tokenizer = train_tokenizer(corpus, recipe.seed, folder)

        def publish(model: Gemma2ForCausalLM) -> None:
            finished = Path(scratch) / "finished"
            shutil.copytree(folder, finished)
            save_model(model, finished)
            replace_folder(finished, output)

        model = fit(corpus, tokenizer, recipe, publish)
    log.info("parameters %d", sum(parameter.numel() for parameter in model.parameters()))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Rebuild the demo's tokenizer and model from its corpus.")
    parser.add_argument("--output", type=Path, default=demo_folder())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="end each phase early, for a quick look")
    arguments = parser.parse_args()
    shortened = (replace(phase, steps=min(phase.steps, arguments.steps or phase.steps)) for phase in PHASES)
    rebuild(arguments.output, Recipe(phases=tuple(shortened), seed=arguments.seed))


if __name__ == "__main__":
    main()
