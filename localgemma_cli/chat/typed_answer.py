"""An answer of a form: of a schema, a choice, a pattern, or a code block. Shown whole or not at all."""

from collections.abc import Callable
from dataclasses import replace

from localgemma_cli.constraint import Constraint
from localgemma_cli.errors import IncompleteAnswer
from localgemma_cli.prompts.answer_value import answer_value, first_code_block
from localgemma_cli.render.base import Answer, Parsed, Renderer


class HiddenRenderer:
    """Shows nothing while an answer arrives."""

    def thinking(self, text: str) -> None:
        pass

    def delta(self, text: str) -> None:
        pass

    def finish(self, answer: Answer) -> None:
        pass

    def abort(self) -> None:
        pass


def show_typed(answer: Answer, constraint: Constraint | None, make_renderer: Callable[[], Renderer]) -> None:
    """Write the answer with its value; without a constraint, only its first code block. IncompleteAnswer."""
    value = read_code_block(answer) if constraint is None else read_value(answer, constraint)
    renderer = make_renderer()
    renderer.delta(str(value) if constraint is None else answer.text)
    renderer.finish(replace(answer, parsed=Parsed(value)))


def read_value(answer: Answer, constraint: Constraint) -> object:
    """The answer's value; IncompleteAnswer where it was cut off, or is not what it had to be."""
    require_whole(answer)
    try:
        return answer_value(constraint, answer.text)
    except ValueError as error:
        raise IncompleteAnswer(
            f"The answer is not what it had to be: {error}.", "Ask again, or use another model.", answer.text
        ) from None


def read_code_block(answer: Answer) -> str:
    """The content of the first fenced code block; IncompleteAnswer without a whole one."""
    block = first_code_block(answer.text)
    if block is None:
        require_whole(answer)
        raise IncompleteAnswer("The answer has no code block.", "Ask for one in the prompt.", answer.text)
    return block


def require_whole(answer: Answer) -> None:
    """IncompleteAnswer for an answer that was cut off."""
    finished = answer.finished
    if finished.error is not None:
        raise IncompleteAnswer(finished.error.message, finished.error.hint, answer.text) from finished.error
    if finished.finish_reason == "length":
        raise IncompleteAnswer(
            "The token limit was reached before the answer was complete.",
            "Raise --max-new-tokens, or shorten the prompt.",
            answer.text,
        )
    if finished.finish_reason == "interrupted":
        raise IncompleteAnswer(
            "Stopped before the answer was complete.", "Send it again to retry.", answer.text
        )
