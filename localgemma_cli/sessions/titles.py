"""The title of a conversation that the user has not named: its first question, or the files before it."""

import re

# The form in which `chat.attachments` puts files before a question.
_FILE = re.compile(r"File (?P<name>[^\n]+):\n(?P<fence>`{3,})\n.*?(?:\n(?P=fence)(?:\n\n|\Z)|\Z)", re.DOTALL)


def files_and_words(question: str) -> tuple[list[str], str]:
    """The names of the attached files, and the question without the files."""
    names, at = [], 0
    while file := _FILE.match(question, at):
        names.append(file["name"])
        at = file.end()
    return names, question[at:]


def subject_of(question: str) -> str:
    """The question on one line; for attached files without a question, their names."""
    names, words = files_and_words(question)
    return " ".join(words.split()) or ", ".join(names)
