"""The many ways in which one phrasing is said and typed."""

import random
import re
from collections.abc import Callable

from localgemma_cli.demo.reading import Variation, part_of

SMALL_WORDS = frozenset(
    {"a", "an", "the", "do", "does", "did", "is", "are", "i", "it", "to", "of", "in", "on", "for", "with"}
    | {"can", "me", "my", "there", "what", "how", "which", "you", "please", "be"}
)


def unheld(rng: random.Random, text: str, change: Callable[[random.Random, str], str]) -> str:
    """The changed text, unless it would be one of those kept for judging."""
    changed = change(rng, text)
    return changed if part_of(changed) == "train" else text


def with_other_stem(rng: random.Random, variation: Variation, text: str) -> str:
    """`How do I leave?` as `Is there a way to leave?`."""
    stem = max((stem for stem in variation.stems if text.startswith(stem)), key=len, default="")
    return rng.choice(variation.stems[stem]) + text[len(stem) :] if stem else text


def with_other_words(rng: random.Random, variation: Variation, text: str) -> str:
    """Replace one in three of the words that have a synonym; text in backticks or with marks is unchanged."""

    def other(match: re.Match[str]) -> str:
        choices = variation.words.get(match.group())
        return rng.choice(choices) if choices and rng.random() < 0.33 else match.group()

    return re.sub(r"(?<![\w/_-])[A-Za-z]+(?![\w/_-])", other, text)


def without_some_words(rng: random.Random, text: str) -> str:
    """A few words are left out, mostly small ones: what is left still has to be understood."""
    words = text.split()
    kept = [word for word in words if rng.random() > (0.4 if word.lower() in SMALL_WORDS else 0.04)]
    return " ".join(kept) if kept else text


def in_keywords(text: str) -> str:
    """The phrasing as typed by someone used to a search box."""
    kept = [word for word in text.rstrip("?.!").split() if word.lower() not in SMALL_WORDS]
    return " ".join(kept) if len(kept) > 1 else text


def varied(rng: random.Random, variation: Variation, text: str) -> str:
    """Other words for the same question."""
    if rng.random() < 0.35:
        text = unheld(rng, text, lambda rng, text: with_other_stem(rng, variation, text))
    if rng.random() < 0.4:
        text = unheld(rng, text, lambda rng, text: with_other_words(rng, variation, text))
    if rng.random() < 0.2:
        text = unheld(rng, text, without_some_words)
    elif rng.random() < 0.06:
        text = unheld(rng, text, lambda _, text: in_keywords(text))
    return text


def stated(rng: random.Random, variation: Variation, template: str) -> str:
    """A statement with words around it; `template` still has its `{}`."""
    if rng.random() < 0.35:
        lowered = template if template.startswith(("I ", "I'")) else template[0].lower() + template[1:]
        before = rng.choice(variation.before)
        template = unheld(rng, template, lambda *_: before + lowered)
    if rng.random() < 0.25:
        ended = template.rstrip(".!") + rng.choice(variation.after)
        template = unheld(rng, template, lambda *_: ended)
    return template


def roughened(rng: random.Random, variation: Variation, text: str) -> str:
    """The phrasing as a hurried person may type it."""
    if rng.random() < 0.2:
        opening = rng.choice(variation.openings)
        text = f"{opening} {text[0].lower() + text[1:] if text[:2] != 'I ' else text}"
    if rng.random() < 0.08:
        text = f"{text.rstrip('?.!')} {rng.choice(variation.closings)}"
    if rng.random() < 0.4:
        text = text.rstrip("?.!")
    if rng.random() < 0.35:
        text = text.lower()
    elif rng.random() < 0.03:
        text = text.upper()
    return unheld(rng, text, mistyped) if rng.random() < 0.12 else text


def mistyped(rng: random.Random, text: str) -> str:
    """One slip of the fingers."""
    if len(text) < 8:
        return text
    at = rng.randrange(2, len(text) - 2)
    if not (text[at].isalpha() and text[at + 1].isalpha()):
        return text
    slip = rng.choice(("swap", "drop", "double"))
    if slip == "swap":
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + ("" if slip == "drop" else text[at] * 2) + text[at + 1 :]
