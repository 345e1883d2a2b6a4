"""What a conversation is called where nobody gave it a title."""

import re

# As `chat.attach` writes the files before a question.
_FILE = re.compile(r"File (?P<name>[^\n]+):\n(?P<fence>`{3,})\n.*?(?:\n(?P=fence)(?:\n\n|\Z)|\Z)", re.DOTALL)


def subject_of(question: str) -> str:
    """The question on one line without the files before it, or their names where it has no words."""
    names, at = [], 0
    while file := _FILE.match(question, at):
        names.append(file["name"])
        at = file.end()
    return " ".join(question[at:].split()) or ", ".join(names)
