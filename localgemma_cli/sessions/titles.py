"""What a conversation is called where nobody gave it a title."""

import re

# As `chat.attach` writes the files before a question.
_FILE = re.compile(r"File (?P<name>[^\n]+):\n(?P<fence>`{3,})\n.*?(?:\n(?P=fence)(?:\n\n|\Z)|\Z)", re.DOTALL)


def files_and_words(question: str) -> tuple[list[str], str]:
    """The names of the files before a question, and the question."""
    names, at = [], 0
    while file := _FILE.match(question, at):
        names.append(file["name"])
        at = file.end()
    return names, question[at:]


def subject_of(question: str) -> str:
    """The question on one line, or the names of its files where it has no words."""
    names, words = files_and_words(question)
    return " ".join(words.split()) or ", ".join(names)
