"""What the shipped model can do, through the program itself, on phrasings it was never trained on."""

import pytest

from localgemma_cli.demo.evaluate import Report, evaluate, program_answers
from localgemma_cli.models.catalog import demo_folder

QUESTIONS = 240  # of all that are held out; `python -m localgemma_cli.demo.evaluate` asks every one


@pytest.fixture(scope="module")
def report() -> Report:
    return evaluate(program_answers(demo_folder()), limit=QUESTIONS)


@pytest.mark.parametrize(
    ("section", "least", "share"),
    [
        ("questions", 100, 0.85),
        ("recalls", 50, 0.90),
        ("system_texts", 30, 0.90),
        ("out_of_scope", 20, 0.85),
    ],
)
def test_the_demo_keeps_its_promise(report: Report, section: str, least: int, share: float) -> None:
    tally = report.sections[section]
    wrong = [outcome for outcome in report.failures() if outcome.case.section == section]
    assert tally.total >= least
    assert tally.right >= share * tally.total, "\n".join(f"{each.case.turns} {each.answer}" for each in wrong)
