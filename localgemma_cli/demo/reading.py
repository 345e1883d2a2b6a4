"""The demo's corpus as values, and its split into what is trained on and what is kept for judging."""

import hashlib
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Part = Literal["train", "dev", "test"]

CORPUS_FOLDER = Path(__file__).parent / "corpus"

# Out of a hundred phrasings: the first ten are the test set, which is reported; the next three are for tuning
# the training; the model is trained on the rest. A phrasing's part depends on its words alone, so that
# adding a phrasing never moves another one.
TEST_SHARE, DEV_SHARE = 10, 3

_POLITE = re.compile(
    r"^(?:(?:please|hey|hi|hello|ok|okay|so|and|well|um|sorry|quick question|one question|"
    r"(?:can|could|would) you (?:please )?(?:tell me|explain)|tell me|i wonder|do you know)\s+)+"
    r"|(?:\s+(?:please|thanks|thank you|then|now))+$"
)


@dataclass(frozen=True)
class Topic:
    """One thing the demo can be asked about; each group of `facts` lists alternatives, one must appear."""

    id: str
    kind: str
    word: str
    names: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Memory:
    """Something users say about themselves, as templates around one `{}`."""

    id: str
    noun: str
    clause: str
    statements: tuple[str, ...]
    asks: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Manner:
    """A way of answering that a system text asks for."""

    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Variation:
    """How phrasings may be said otherwise, see `phrasing.py`."""

    stems: dict[str, tuple[str, ...]]
    words: dict[str, tuple[str, ...]]
    before: tuple[str, ...]
    after: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    topics: tuple[Topic, ...]
    memories: tuple[Memory, ...]
    manners: tuple[Manner, ...]
    summaries: tuple[str, ...]
    frames: tuple[str, ...]
    off_frames: tuple[str, ...]
    off_nouns: tuple[str, ...]
    variation: Variation


def normalise(phrase: str) -> str:
    """What two phrasings share when they differ only in case, punctuation or polite words."""
    words = " ".join(re.findall(r"[a-z0-9{}']+", phrase.lower().replace("-", " ")))
    return _POLITE.sub("", words).strip() or words


def part_of(phrase: str, seed: int = 0) -> Part:
    digest = hashlib.sha256(f"{seed}:{normalise(phrase)}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") % 100
    if share < TEST_SHARE:
        return "test"
    return "dev" if share < TEST_SHARE + DEV_SHARE else "train"


def only(phrases: tuple[str, ...], part: Part) -> tuple[str, ...]:
    return tuple(phrase for phrase in phrases if part_of(phrase) == part)


def select(corpus: Corpus, part: Part) -> Corpus:
    """The same corpus with the phrasings and values of one part."""
    return replace(
        corpus,
        topics=tuple(replace(topic, questions=only(topic.questions, part)) for topic in corpus.topics),
        memories=tuple(
            replace(
                memory,
                statements=only(memory.statements, part),
                asks=only(memory.asks, part),
                values=only(memory.values, part),
            )
            for memory in corpus.memories
        ),
        manners=tuple(replace(manner, texts=only(manner.texts, part)) for manner in corpus.manners),
        summaries=only(corpus.summaries, part),
        frames=only(corpus.frames, part),
        off_frames=only(corpus.off_frames, part),
        off_nouns=only(corpus.off_nouns, part),
    )


def read_corpus(folder: Path = CORPUS_FOLDER) -> Corpus:
    tables = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.toml"))}
    phrasing = tables["phrasing"]
    return Corpus(
        topics=tuple(
            _topic(table, kind)
            for stem, kind in ((stem, stem.split("_")[0]) for stem in tables)
            for table in tables[stem].get("topic", [])
        ),
        memories=tuple(_memory(table) for table in tables["memories"]["memory"]),
        manners=tuple(
            Manner(table["id"], _unique(_lines(table["texts"]))) for table in tables["manners"]["manner"]
        ),
        summaries=_unique(_lines(tables["memories"]["summaries"])),
        frames=_lines(phrasing["frames"]),
        off_frames=_unique(_lines(phrasing["off_frames"])),
        off_nouns=_unique(_lines(phrasing["off_nouns"])),
        variation=_variation(tables["variation"], phrasing),
    )


def _variation(table: dict[str, Any], phrasing: dict[str, Any]) -> Variation:
    return Variation(
        stems={stem: tuple(others) for stem, others in table["stems"].items()},
        words={word: tuple(others) for word, others in table["words"].items()},
        before=tuple(table["statements"]["before"]),
        after=tuple(table["statements"]["after"]),
        openings=_lines(phrasing["openings"]),
        closings=_lines(phrasing["closings"]),
    )


def _topic(table: dict[str, Any], kind: str) -> Topic:
    facts = tuple(tuple(group) for group in table["facts"])
    return Topic(
        id=table["id"],
        kind=kind,
        word=table["word"],
        names=_lines(table.get("names", "")),
        questions=_unique(_lines(table["questions"])),
        answers=tuple(answer.strip() for answer in table["answers"]),
        facts=facts,
    )


def _memory(table: dict[str, Any]) -> Memory:
    return Memory(
        id=table["id"],
        noun=table["noun"],
        clause=table["clause"],
        statements=_unique(_lines(table["statements"])),
        asks=_unique(_lines(table["asks"])),
        values=tuple(
            value.strip() for value in table.get("values", "").replace("\n", ",").split(",") if value.strip()
        ),
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _unique(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The first of each group of phrasings that are the same once normalised."""
    return tuple({normalise(phrase): phrase for phrase in reversed(phrases)}.values())[::-1]
