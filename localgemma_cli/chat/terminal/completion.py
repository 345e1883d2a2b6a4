"""Completion at the prompt: commands, their arguments, and paths."""

import os
import re
from collections.abc import Callable, Iterable, Iterator

from prompt_toolkit.application.current import get_app_or_none
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from localgemma_cli.chat.slash.slash_commands import COMMANDS, RENDERS
from localgemma_cli.models.model_names import selectable_models
from localgemma_cli.sanitize import one_line

_PATHS = ("/file", "/export")
_MENTION = re.compile(r"(?<!\S)@(\S*)$")


class ChatCompleter(Completer):
    """Completes the line at the prompt.

    `keys` are for /set and /retry; `names` returns the saved conversations when they are needed.
    """

    def __init__(self, keys: Iterable[str], names: Callable[[], list[str]]) -> None:
        self._keys, self._names = tuple(keys), names
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        try:
            yield from self._complete(document, event)
        except Exception:  # a folder or file that cannot be read must not end the chat
            return

    def _complete(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        before = document.text_before_cursor
        mention = _MENTION.search(before)
        if mention:
            yield from self._complete_path(mention[1], event)
        elif before.startswith("/") and "\n" not in before:
            name, blank, argument = before.partition(" ")
            if blank:
                yield from self._complete_argument(name, argument, event)
            else:
                for command, about in COMMANDS.items():
                    if command.startswith(name):
                        yield Completion(command, -len(name), display_meta=about.what)

    def _complete_argument(self, name: str, argument: str, event: CompleteEvent) -> Iterator[Completion]:
        if name in _PATHS:
            yield from self._complete_path(argument.split(" ")[-1], event)
            return
        words: Iterable[str] = ()
        if name in COMMANDS:
            words = COMMANDS[name].choices
        if name == "/set":
            words = (*self._keys, "render")
            if argument.startswith("render "):
                words, argument = RENDERS, argument.removeprefix("render ")
        elif name == "/retry":
            words, argument = [f"{key}=" for key in self._keys], argument.split(" ")[-1]
        elif name == "/load":
            words = self._names()
        elif name == "/model":
            words = selectable_models()
        for word in words:
            if word.startswith(argument):
                yield Completion(word, -len(argument), display=one_line(word))

    def _complete_path(self, begun: str, event: CompleteEvent) -> Iterator[Completion]:
        """Paths; names with spaces are quoted, as they must be typed."""
        for found in self._paths.get_completions(Document(begun), event):
            whole = begun + found.text
            if os.path.isdir(os.path.expanduser(whole)):
                whole += "/"
            text = f'"{whole}"' if " " in whole else whole
            yield Completion(text, -len(begun), display=one_line(found.display_text))


def completes_while_typing() -> bool:
    """Whether the text is a command or ends with an @path; anything else is completed on Tab."""
    app = get_app_or_none()
    text = app.current_buffer.document.text_before_cursor if app else ""
    return text.startswith("/") or text.split(" ")[-1].startswith("@")
