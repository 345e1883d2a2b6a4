"""Write what a user sees at 40, 60, 80 and 120 columns, as text: `python tests/screens.py FOLDER`."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from support.chat_server import ChatServer, sse
from support.program import Program
from support.terminal import Terminal

WIDTHS = (40, 60, 80, 120)
TABLE = """| Model | Parameters | What it is |
|---|---:|---|
| 2b | 2.6 billion | small and quick, for laptops and for trying things out |
| 9b | 9.2 billion | better answers, for one larger GPU |
"""
CODE = '''A loop over the lines of a file:

```python
def count_words(path: str) -> dict[str, int]:
    """How often each word occurs in the file, in the order of their first occurrence."""
    counts: dict[str, int] = {}
    for line in open(path, encoding="utf-8"):
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    return counts
```
'''


def first_screen(program: Program, columns: int) -> str:
    with Terminal(program, ["-m", "demo"], columns=columns) as terminal:
        terminal.wait("/help", 240)
        terminal.wait_for_prompt(240)
        return terminal.text


def printed(*words: str) -> Callable[[Program, int], str]:
    def show(program: Program, columns: int) -> str:
        with Terminal(program, words, columns=columns) as terminal:
            terminal.wait_for_end(240)
            return terminal.text

    return show


def answered(text: str) -> Callable[[Program, int], str]:
    def show(program: Program, columns: int) -> str:
        with ChatServer() as server:
            server.answers(sse(*text.splitlines(keepends=True)))
            words = ("--endpoint", server.url, "--no-save", "-q", "Show it to me")
            return printed(*words)(program, columns)

    return show


SCREENS: Mapping[str, Callable[[Program, int], str]] = {
    "first-screen": first_screen,
    "help": printed("--help"),
    "models-list": printed("models", "list"),
    "plan-all": printed("plan", "--all", "--device", "cuda", "--device-memory", "24GiB"),
    "table": answered(TABLE),
    "code": answered(CODE),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, show in SCREENS.items():
        for columns in WIDTHS:
            with tempfile.TemporaryDirectory() as home:
                text = show(Program(Path(home)), columns)
            (folder / f"{name}-{columns}.txt").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
