"""Training chats, made up on the fly from the corpus."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from localgemma_cli.demo.phrasing import roughened, stated, varied
from localgemma_cli.demo.reading import Corpus, Memory, Topic, part_of

ONE_WORD, PIRATE, UPPER, PLAIN = "one_word", "pirate", "upper_case", "plain"

CONSONANTS = (
    *"bcdfghjklmnprstvwz",
    "br",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "kr",
    "ph",
    "sh",
    "sl",
    "st",
    "th",
    "tr",
)
VOWELS = (*"aeioaeiou", "ai", "ea", "ee", "ia", "ou")
ENDINGS = ["", "", "", "n", "r", "s", "l", "ck", "th", "m", "nd", "lla", "na", "ra", "ko", "ton"]


@dataclass(frozen=True)
class Turn:
    """An exchange; where it is not `taught`, the model's words stand in the chat but are not learned."""

    user: str
    model: str
    taught: bool = True


@dataclass
class Chat:
    """What has been said so far about the user, and how the system text wants answers."""

    manner: str = PLAIN
    known: dict[str, str] = field(default_factory=dict)


def fold(system: str, user: str) -> str:
    """The system text as Gemma 2 is given it: before the first user turn."""
    return f"{system}\n\n{user}" if system else user


def in_manner(manner: str, answer: str, word: str) -> str:
    """The same answer as the system text wants it."""
    if manner == ONE_WORD:
        return word
    if manner == UPPER:
        return answer.upper()
    if manner == PIRATE:
        answer = re.sub(r"\b([Yy])our\b", r"\1er", answer)
        return "Arr, matey! " + re.sub(r"\b([Yy])ou\b", r"\1e", answer)
    return answer


def joined(clauses: list[str]) -> str:
    return clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]


def sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:] + "."


def acknowledgement(clauses: list[str]) -> str:
    return f"Noted: {joined(clauses)}."


def recollection(memory: Memory, value: str | None) -> str:
    if value is None:
        return f"You have not told me {memory.noun} yet."
    return sentence(memory.clause.format(value))


def made_up_word(rng: random.Random) -> str:
    """Any shape a name may have; one in three begins with a vowel."""
    syllables = "".join(
        rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )
    start = rng.choice(VOWELS) if rng.random() < 0.33 else ""
    return start + syllables + rng.choice(ENDINGS)


def number(rng: random.Random) -> str:
    """One to five digits, often with repeated ones: those are the hard ones to copy."""
    if rng.random() < 0.25:
        few = rng.sample("0123456789", 2)
        return rng.choice("123456789") + "".join(rng.choice(few) for _ in range(rng.randrange(1, 5)))
    return str(rng.randrange(10 ** rng.choice((1, 2, 2, 3, 4, 5, 5))))


class Dialogues:
    """Makes chats; everything random comes from one generator, so a seed is a corpus."""

    def __init__(
        self, corpus: Corpus, rng: random.Random, recall_shares: tuple[int, ...] = (15, 50, 130)
    ) -> None:
        self.corpus, self.rng, self.recall_shares = corpus, rng, recall_shares
        self.guide = [topic for topic in corpus.topics if topic.kind == "guide" and topic.questions]
        self.small_talk = [topic for topic in corpus.topics if topic.kind == "smalltalk" and topic.questions]
        self.unknown = [topic for topic in corpus.topics if topic.kind == "unknown"]
        self.words = sorted({word for noun in corpus.off_nouns for word in noun.split() if word.isalpha()})
        self.manners = {manner.id: manner.texts for manner in corpus.manners}

    def chat(self) -> Iterator[Turn]:
        """Turns without end; the caller stops when its context is full."""
        manner = self.rng.choices((PLAIN, ONE_WORD, PIRATE, UPPER, "ignored"), (62, 11, 9, 10, 8))[0]
        chat = Chat(PLAIN if manner == "ignored" else manner)
        system = "" if manner == PLAIN else self.rng.choice(self.manners[manner])
        # Some chats are mostly about remembering, others mostly about the program.
        recall_share = self.rng.choice(self.recall_shares)
        while True:
            turn = self._turn(chat, recall_share)
            yield replace(turn, user=fold(system, turn.user))
            system = ""

    def _turn(self, chat: Chat, recall_share: int) -> Turn:
        makers = (self._guide, self._small_talk, self._off_topic, self._statement, self._ask, self._echo)
        weights = (60, 10, 14, recall_share * 0.5, recall_share * 0.6, 8)
        return self.rng.choices(makers, weights)[0](chat)

    def _said(self, phrasing: str) -> str:
        return roughened(self.rng, self.corpus.variation, varied(self.rng, self.corpus.variation, phrasing))

    def _answered(self, chat: Chat, question: str, topic: Topic) -> Turn:
        answer = in_manner(chat.manner, self.rng.choice(topic.answers), topic.word)
        return Turn(self._said(question), answer)

    def _unheld(self, make: Callable[[], str]) -> str:
        """A frame and a noun may make a phrasing that is kept for judging: then another one is made."""
        while part_of(phrasing := make()) != "train":
            pass
        return phrasing

    def _guide(self, chat: Chat) -> Turn:
        topic = self.rng.choice(self.guide)
        if topic.names and self.rng.random() < 0.12:
            frames, names = self.corpus.frames, topic.names
            framed = self._unheld(lambda: self.rng.choice(frames).format(self.rng.choice(names)))
            return self._answered(chat, framed, topic)
        return self._answered(chat, self.rng.choice(topic.questions), topic)

    def _small_talk(self, chat: Chat) -> Turn:
        topic = self.rng.choice(self.small_talk)
        return self._answered(chat, self.rng.choice(topic.questions), topic)

    def _off_topic(self, chat: Chat) -> Turn:
        topic = self.rng.choice(self.unknown)
        if self.rng.random() < 0.5:
            return self._answered(chat, self.rng.choice(topic.questions), topic)
        return self._answered(chat, self._unheld(self._framed_off_topic), topic)

    def _framed_off_topic(self) -> str:
        noun = self.rng.choice(self.corpus.off_nouns) if self.rng.random() < 0.85 else made_up_word(self.rng)
        frame = self.rng.choice(self.corpus.off_frames)
        return frame.replace("{n}", str(self.rng.randrange(2, 1000))).replace("{}", noun)

    def _value(self, memory: Memory) -> str:
        if memory.id == "number":
            return number(self.rng)
        word = self.rng.choices((self._listed, self._ordinary_word, self._made_up), (35, 20, 45))[0](memory)
        titled = memory.id in ("name", "city", "pet") and self.rng.random() < 0.95
        return word[0].upper() + word[1:] if titled else word

    def _listed(self, memory: Memory) -> str:
        return self.rng.choice(memory.values)

    def _ordinary_word(self, _: Memory) -> str:
        """Pieces of ordinary words have to be copied as well as those of names."""
        return self.rng.choice(self.words)

    def _made_up(self, memory: Memory) -> str:
        return made_up_word(self.rng)

    def _statement(self, chat: Chat) -> Turn:
        count = self.rng.choices((1, 2, 3), (70, 22, 8))[0]
        memories = self.rng.sample(self.corpus.memories, count)
        said, clauses = [], []
        for memory in memories:
            value = self._value(memory)
            chat.known[memory.id] = value
            said.append(
                stated(self.rng, self.corpus.variation, self.rng.choice(memory.statements)).format(value)
            )
            clauses.append(memory.clause.format(value))
        user = self._barely_roughened(" ".join(said))
        if self.rng.random() < 0.1:
            # A statement that was not understood when it was made can still be asked about.
            return Turn(user, self._guide(chat).model, taught=False)
        return Turn(user, in_manner(chat.manner, acknowledgement(clauses), "Noted"))

    def _ask(self, chat: Chat) -> Turn:
        if self.rng.random() < 0.07:
            return self._summary(chat)
        told = [memory for memory in self.corpus.memories if memory.id in chat.known]
        memory = self.rng.choice(told if told and self.rng.random() < 0.8 else self.corpus.memories)
        value = chat.known.get(memory.id)
        answer = in_manner(chat.manner, recollection(memory, value), "Unknown" if value is None else value)
        return Turn(self._said(self.rng.choice(memory.asks)), answer)

    def _summary(self, chat: Chat) -> Turn:
        question = self._said(self.rng.choice(self.corpus.summaries))
        clauses = [
            memory.clause.format(chat.known[memory.id])
            for memory in self.corpus.memories
            if memory.id in chat.known
        ]
        answer = sentence(joined(clauses)) if clauses else "You have not told me anything about yourself yet."
        return Turn(question, in_manner(chat.manner, answer, "Facts" if clauses else "Nothing"))

    def _echo(self, chat: Chat) -> Turn:
        """Copying on demand: it teaches the same skill as remembering, one step away."""
        words = " ".join(made_up_word(self.rng) for _ in range(self.rng.randrange(1, 4)))
        frame = self.rng.choice(
            ("Say {}.", "Repeat after me: {}", "Please repeat: {}", "Say the word {}.", "Repeat {}")
        )
        return Turn(frame.format(words), in_manner(chat.manner, words, words.split()[0]))

    def _barely_roughened(self, text: str) -> str:
        """Values must survive: only the final stop and the case may change."""
        if self.rng.random() < 0.3:
            text = text.rstrip(".!")
        return text[0].lower() + text[1:] if self.rng.random() < 0.25 else text
