"""Refuse a mistyped command instead of sending it as a prompt, and suggest the command that was meant."""

import re
import shlex
from collections.abc import Mapping, Sequence

from localgemma_cli.errors import UsageError

COMMAND_NAMES = (
    "plan",
    "models",
    "prompt",
    "prompts",
    "history",
    "bench",
    "serve",
    "config",
    "batch",
    "ps",
    "stop",
    "score",
)  # each in the module of its name
_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]*")
_SUBCOMMANDS: Mapping[str, Sequence[str]] = {
    "models": ("list", "rm", "pull"),
    "history": ("list", "show", "search", "export", "import", "rm"),
    "prompts": ("list", "show", "save", "rm"),
}
# Commands of other programs, and the command here.
_ELSEWHERE: Mapping[str, str] = {
    "help": "--help",
    "version": "--version",
    "chat": "",
    "start": "",
    "server": "serve",
    "ls": "models list",
    "download": "models pull",
    "install": "models pull",
    "remove": "models rm",
    "delete": "models rm",
    "uninstall": "models rm",
    "sessions": "history list",
    "conversations": "history list",
    "templates": "prompts list",
    "benchmark": "bench",
    "perplexity": "score",
    "settings": "config show",
    "configure": "config edit",
    "completion": "--show-completion",
}
_RUN = ("run", "chat")  # in other programs, followed by a model


def refuse_near_commands(words: Sequence[str]) -> None:
    """Raise UsageError if the first word is a misspelled command, or a subcommand without its command."""
    if not words or not _BARE.fullmatch(words[0]) or words[0] in COMMAND_NAMES:
        return
    meant = _command_meant(words)
    if meant is not None:
        raise _not_a_command(words[0], meant, words)


def refuse_bare_word(word: str) -> None:
    """Raise UsageError if the whole prompt is one word, which is probably a command that does not exist."""
    if not _BARE.fullmatch(word):
        return
    meant = _ELSEWHERE.get(word.lower(), _command_meant([word]) or _model_meant(word))
    if meant is None:
        import difflib  # imported only here, because every start imports this module

        close = difflib.get_close_matches(word.lower(), [*COMMAND_NAMES, *_ELSEWHERE], n=1, cutoff=0.75)
        meant = _ELSEWHERE.get(close[0], close[0]) if close else None
    raise _not_a_command(word, meant, [word])


def _not_a_command(word: str, meant: str | None, words: Sequence[str]) -> UsageError:
    prompt = " ".join(words)
    as_prompt = f"To send it as a prompt: localgemma -- {shlex.quote(prompt)}"
    if meant is None:
        hint = f"List the commands with: localgemma --help. {as_prompt}"
    else:
        hint = f"Did you mean: {f'localgemma {meant}'.strip()}? {as_prompt}"
    return UsageError(f"Unknown command: {word!r}.", hint)


def _command_meant(words: Sequence[str]) -> str | None:
    """The command without the program's name, or None if the words resemble none."""
    first, rest = words[0].lower(), list(words[1:])
    operands = [word for word in rest if not word.startswith("-")]
    single = len(operands) <= 1 and all(_BARE.fullmatch(word) for word in operands)
    if single and operands and first in _RUN:
        return _model_meant(operands[0]) or f"-m {operands[0]}"
    near = next((each for each in COMMAND_NAMES if _is_slip(first, each)), None)
    if near is not None:
        return " ".join([near, *rest])
    if not single:
        return None
    by_number = bool(operands) and operands[0].isdecimal()  # only conversations have numbers
    for command in sorted(_SUBCOMMANDS, key=lambda each: each != "history") if by_number else _SUBCOMMANDS:
        found = next((each for each in _SUBCOMMANDS[command] if _is_slip(first, each)), None)
        if found and (operands or found == "list"):
            return " ".join([command, found, *rest])
    return None


def _model_meant(word: str) -> str | None:
    from localgemma_cli.models.model_names import nearest_model

    nearest = nearest_model(word) if re.search(r"\d", word) or word.lower() == "demo" else None
    return f"-m {nearest}" if nearest else None


def _is_slip(word: str, command: str) -> bool:
    """Whether `word` is `command` with one letter added, missing, wrong or swapped; two in a long word."""
    allowed = 0 if len(command) < 4 else 1 if len(command) < 7 else 2
    return word[:1] == command[:1] and _slips(word, command) <= allowed


def _slips(one: str, other: str) -> int:
    """The optimal string alignment distance: single-letter edits, with a swap of neighbours as one."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(other, start=1):
            cost = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, b) == (other[j - 2], one[i - 2]):
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]
