"""Judges the demo on phrasings it was never trained on: `python -m localgemma_cli.demo.evaluate`."""

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from localgemma_cli.demo.dialogues import ONE_WORD, PIRATE, PLAIN, UPPER
from localgemma_cli.demo.reading import Corpus, Memory, Part, Topic, read_corpus, select
from localgemma_cli.models.catalog import demo_folder

Messages = list[dict[str, str]]
AnswerFunction = Callable[[Messages], str]

RECALLS, PER_MANNER, OFF_TOPIC = 50, 10, 20
PIRATE_WORDS = ("arr", "matey", "ye", "yer", "ahoy", "aye")

# Topics whose questions have one word as their plain answer.
ONE_WORD_TOPICS = (
    "who-made-gemma", "install", "nf4", "dtype", "licence-program", "jsonl", "json", "seed", "no-color",
    "context-length", "sliding-window", "home", "exit-2", "exit-3", "exit-5", "exit-6", "exit-7", "exit-130",
    "default-model", "quiet", "verbose", "slash-help", "slash-new", "max-new-tokens", "safetensors",
    "demo-context",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """User turns to play in one chat; the answer to the last one is judged."""

    section: str
    turns: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]
    system: str = ""
    manner: str = PLAIN


@dataclass(frozen=True)
class Judgement:
    case: Case
    answer: str
    right: bool


@dataclass
class Tally:
    right: int = 0
    total: int = 0


@dataclass
class Report:
    """Right and total per section, and every outcome behind them."""

    sections: dict[str, Tally] = field(default_factory=dict)
    outcomes: list[Judgement] = field(default_factory=list)

    def add(self, outcome: Judgement) -> None:
        tally = self.sections.setdefault(outcome.case.section, Tally())
        tally.total += 1
        tally.right += outcome.right
        self.outcomes.append(outcome)

    def failures(self) -> list[Judgement]:
        return [outcome for outcome in self.outcomes if not outcome.right]


def has_facts(answer: str, facts: tuple[tuple[str, ...], ...]) -> bool:
    """Every group has one alternative in the answer, as whole words where it starts or ends with one."""
    text = answer.lower()
    return all(
        any(re.search(rf"(?<!\w){re.escape(fact.lower())}(?!\w)", text) for fact in group) for group in facts
    )


def follows(manner: str, answer: str) -> bool:
    """Whether the answer has the form that the system text asks for; its content is not judged."""
    if manner == ONE_WORD:
        return len(answer.split()) == 1
    if manner == UPPER:
        return bool(answer) and answer == answer.upper()
    return manner == PLAIN or has_facts(answer, (PIRATE_WORDS,))


def is_right(case: Case, answer: str) -> bool:
    """Given as wanted, and with the facts in it."""
    if case.manner == ONE_WORD:
        return answer.strip().rstrip(".!").casefold() == case.facts[0][0].casefold()
    return follows(case.manner, answer) and has_facts(answer, case.facts)


def play(case: Case, answer: AnswerFunction) -> str:
    messages: Messages = [{"role": "system", "content": case.system}] if case.system else []
    reply = ""
    for turn in case.turns:
        messages.append({"role": "user", "content": turn})
        reply = answer(messages)
        messages.append({"role": "assistant", "content": reply})
    return reply


def question_cases(corpus: Corpus, limit: int | None) -> list[Case]:
    """One phrasing per topic, then a second one of each, and so on: a limit leaves every topic in."""
    topics = [topic for topic in corpus.topics if topic.kind != "unknown"]
    longest = max(len(topic.questions) for topic in topics)
    cases = [
        Case("questions" if topic.kind == "guide" else "small_talk", (topic.questions[at],), topic.facts)
        for at in range(longest)
        for topic in topics
        if at < len(topic.questions)
    ]
    return cases[:limit]


def _off_topic(corpus: Corpus) -> Topic:
    return next(topic for topic in corpus.topics if topic.kind == "unknown")


def off_topic_cases(corpus: Corpus, rng: random.Random) -> list[Case]:
    topic = _off_topic(corpus)
    questions = rng.sample(topic.questions, min(OFF_TOPIC, len(topic.questions)))
    return [Case("out_of_scope", (question,), topic.facts) for question in questions]


def _value(memory: Memory, rng: random.Random) -> str:
    return rng.choice(memory.values) if memory.values else str(rng.randrange(10 ** rng.randrange(1, 6)))


def _unrelated(corpus: Corpus, rng: random.Random, count: int) -> list[str]:
    questions = [question for topic in corpus.topics for question in topic.questions]
    return rng.sample(questions, count)


def recall_cases(corpus: Corpus, rng: random.Random) -> Iterator[Case]:
    """A fact, two to six unrelated turns, then a question about it; in one case of ten without the fact."""
    memories = [memory for memory in corpus.memories if memory.asks and memory.statements]
    # Names, colours and numbers are what people try first.
    order = [*memories[:3], *memories[:3], *memories[3:]]
    for index in range(RECALLS):
        memory = order[index % len(order)]
        value = _value(memory, rng)
        statement, ask = rng.choice(memory.statements).format(value), rng.choice(memory.asks)
        between = _unrelated(corpus, rng, rng.randrange(2, 7))
        if index % 10 == 9:
            yield Case("recalls", (*between, ask), (("not told",),))
        elif index % 3 == 2:
            other = rng.choice([one for one in memories if one is not memory])
            second = rng.choice(other.statements).format(_value(other, rng))
            yield Case("recalls", (statement, second, *between, ask), ((value,),))
        else:
            yield Case("recalls", (statement, *between, ask), ((value,),))


def manner_cases(corpus: Corpus, rng: random.Random) -> Iterator[Case]:
    """Half of them ask for the first time, half after two other turns: the system text has to hold."""
    topics = [topic for topic in corpus.topics if topic.kind == "guide" and topic.questions]
    for manner in (manner for manner in corpus.manners if manner.id in (ONE_WORD, PIRATE, UPPER)):
        for index in range(PER_MANNER):
            fitting = [topic for topic in topics if manner.id != ONE_WORD or topic.id in ONE_WORD_TOPICS]
            topic = rng.choice(fitting)
            before = _unrelated(corpus, rng, 2 * (index % 2))
            facts = ((topic.word,),) if manner.id == ONE_WORD else topic.facts
            turns = (*before, rng.choice(topic.questions))
            yield Case("system_texts", turns, facts, manner.texts[index % len(manner.texts)], manner.id)


def cases(part: Part = "test", limit: int | None = None) -> list[Case]:
    corpus, rng = select(read_corpus(), part), random.Random(0)
    return [
        *question_cases(corpus, limit),
        *recall_cases(corpus, rng),
        *manner_cases(corpus, rng),
        *off_topic_cases(corpus, rng),
    ]


def evaluate(answer: AnswerFunction, part: Part = "test", limit: int | None = None) -> Report:
    """Plays every case; `limit` caps the questions, the other sections have fixed sizes.

    `system_texts` counts answers that are given as the system text wants; `system_answers` counts those of
    them that are also right, which takes a question understood as well.
    """
    report = Report()
    for case in cases(part, limit):
        text = play(case, answer)
        if case.manner == PLAIN:
            report.add(Judgement(case, text, is_right(case, text)))
        else:
            report.add(Judgement(case, text, follows(case.manner, text)))
            report.add(Judgement(replace(case, section="system_answers"), text, is_right(case, text)))
    return report


def program_answers(folder: Path, temperature: float = 0.0) -> AnswerFunction:
    """The program's own way of answering, from prompt to text, with its `exact` preset."""
    from threading import Event as Cancel

    from localgemma_cli.backends.pytorch.backend import load_backend
    from localgemma_cli.conversation import Message
    from localgemma_cli.events import Delta
    from localgemma_cli.models.catalog import demo_facts
    from localgemma_cli.planning.hardware import probe
    from localgemma_cli.planning.plan import Overrides, make_plan
    from localgemma_cli.planning.presets import load_presets
    from localgemma_cli.render.progress import ignore_progress
    from localgemma_cli.sampling import Sampling

    plan = make_plan(demo_facts(), "exact", probe(), Overrides(), load_presets())
    backend = load_backend(plan, folder, ignore_progress)
    sampling = Sampling(temperature=temperature, max_new_tokens=160, seed=0)

    def answer(messages: Messages) -> str:
        conversation = [Message(each["role"], each["content"]) for each in messages]  # type: ignore[arg-type] # the cases use a conversation's own roles
        events = backend.stream(conversation, sampling, Cancel())
        return "".join(event.text for event in events if isinstance(event, Delta)).strip()

    return answer


def render(report: Report, verbose: bool) -> str:
    lines = [f"{name:14} {tally.right:4d} / {tally.total}" for name, tally in report.sections.items()]
    for outcome in report.failures() if verbose else []:
        lines += ["", f"{outcome.case.section}: {outcome.case.system}"]
        lines += [f"  > {turn}" for turn in outcome.case.turns]
        lines += [f"  < {outcome.answer}", f"    wanted {outcome.case.facts}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the demo on held-out phrasings.")
    parser.add_argument("--model", type=Path, default=demo_folder())
    parser.add_argument("--part", choices=("test", "dev"), default="test")
    parser.add_argument("--limit", type=int, help="at most so many questions")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what went wrong")
    arguments = parser.parse_args()
    report = evaluate(
        program_answers(arguments.model, arguments.temperature), arguments.part, arguments.limit
    )
    tallies = {name: asdict(tally) for name, tally in report.sections.items()}
    sys.stdout.write(json.dumps(tallies) + "\n" if arguments.json else render(report, arguments.verbose))


if __name__ == "__main__":
    main()
