"""An answer that is one of some choices, by the probability of each whole choice."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from threading import Event as Cancel

from localgemma_cli.backends.answer_stream import stopped_before_reading
from localgemma_cli.conversation import Message
from localgemma_cli.events import Delta, Event, Finished, RateMeter, Usage
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.sampling import Sampling


def choose(
    score: Callable[[], Sequence[float]],
    prompter: Prompter,
    messages: Sequence[Message],
    choices: Sequence[str],
    sampling: Sampling,
    cancel: Cancel,
) -> Iterator[Event]:
    """The events of an answer that is one of `choices`: the likeliest at temperature 0, else drawn.

    Nothing is generated: the model's probability of each choice with its end is computed, so that no choice
    wins by its first token. `score`: `Backend.score` of the choices.
    """
    meter = RateMeter()
    probabilities = normalize_scores(score())
    if cancel.is_set():
        raise stopped_before_reading()
    chosen = draw_choice(choices, probabilities, sampling)
    ids = prompter.encode_answer(chosen)
    meter.tick()
    yield Delta(chosen)
    usage = Usage(len(prompter.encode(messages)), None, len(ids))
    shares = dict(zip(choices, probabilities, strict=True))
    yield Finished("stop", usage, meter.timing(None), tuple(ids), choices=shares)


def normalize_scores(scores: Sequence[float]) -> list[float]:
    """Probabilities with the sum 1 from natural logarithms."""
    most = max(scores)
    weights = [math.exp(score - most) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def draw_choice(choices: Sequence[str], probabilities: Sequence[float], sampling: Sampling) -> str:
    """Draw by the probabilities under the temperature; the first of the likeliest at temperature 0."""
    if sampling.temperature == 0:
        return choices[probabilities.index(max(probabilities))]
    most = max(probabilities)
    weights = [(each / most) ** (1 / sampling.temperature) for each in probabilities]
    return random.Random(sampling.seed).choices(choices, weights)[0]
