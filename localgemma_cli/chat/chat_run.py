"""One run of the chat command once its options are parsed: one answer, or the interactive chat."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import fill
from threading import Event as Cancel
from typing import TYPE_CHECKING, TextIO

from localgemma_cli.chat.phrases import resume_hint, shorten
from localgemma_cli.chat.start_engine import explain_engine
from localgemma_cli.environment import Streams, data_folder
from localgemma_cli.errors import LocalGemmaError, UsageError
from localgemma_cli.render.messages import format_error
from localgemma_cli.sampling import OnOverflow, Sampling
from localgemma_cli.sanitize import one_line

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend
    from localgemma_cli.chat.attachments import Attachment
    from localgemma_cli.chat.chat_session import ChatSession
    from localgemma_cli.chat.engine import ChatEngine
    from localgemma_cli.chat.model_switcher import ModelSwitcher
    from localgemma_cli.chat.prompt_input import PromptInput
    from localgemma_cli.chat.recording import SessionRecorder
    from localgemma_cli.chat.terminal.repl import ReplConfig
    from localgemma_cli.chat.turn import TurnSettings
    from localgemma_cli.conversation import Conversation, Turn
    from localgemma_cli.events import ProgressSink
    from localgemma_cli.options import Options
    from localgemma_cli.render.base import Renderer
    from localgemma_cli.render.json import RunInfo


@dataclass(frozen=True)
class ChatRun:
    """One run of the chat command with all options decided: `answer` a prompt, or `converse`."""

    streams: Streams
    engine: "ChatEngine"
    choose: Callable[[str], "ChatEngine"]  # plans another engine, by the name of its model
    system: str | None
    sampling: Sampling
    options: "Options"

    def explain(self) -> None:
        """Print the engine's warnings and, with `--verbose`, its reasons."""
        explain_engine(self.engine, self.streams, self.options)

    def answer(self, prompt: "PromptInput") -> int:
        """Answer one prompt; returns the exit code."""
        from localgemma_cli.chat.attachments import prepend_attachments
        from localgemma_cli.chat.background_load import load_and_wait
        from localgemma_cli.chat.interrupt import InterruptibleBackend
        from localgemma_cli.chat.one_shot import answer_once

        assert prompt.prompt is not None  # `read_prompt_input` returns None only if a chat follows
        attachments = self._read_files(prompt)
        recorder, conversation = self._open_session(scripted=True)
        started = time.perf_counter()
        cancel = Cancel()
        with self._status("starting") as progress:
            loaded = load_and_wait(self.engine.load, progress)
        backend = InterruptibleBackend(loaded, lambda: cancel, self._status)
        self._say_notes(backend, attachments)
        run = self.engine.run(time.perf_counter() - started)
        text = prepend_attachments(prompt.prompt, attachments)
        settings = self._settings(OnOverflow.ERROR)
        if conversation.turns:
            from localgemma_cli.chat.resume import drop_foreign_ids

            conversation = drop_foreign_ids(conversation, backend, self.streams.say)
        return answer_once(
            backend,
            conversation,
            self.options.mode,
            text,
            settings,
            lambda: self._renderer(run),
            recorder,
            cancel,
            extract=self.options.extract,
        )

    def converse(self, prompt: "PromptInput") -> int:
        """Chat at the terminal, answering `prompt` first if there is one; returns the exit code."""
        from localgemma_cli.chat.model_switcher import ModelSwitcher
        from localgemma_cli.chat.terminal.repl import Repl

        keyboard = self.streams.stdin if self.streams.stdin.isatty() else _open_terminal()
        session = self._make_session(prompt)
        models = ModelSwitcher(self.engine, self.choose)
        if not self.options.quiet:
            self.streams.say(self.engine.introduction)
            self.streams.say("/help lists the commands; Ctrl-D leaves.")
        if session.conversation.turns:
            session.replay()
        Repl(session, models, self._repl_config(models), self.streams, keyboard).run(prompt.prompt)
        with self._status("saving"):
            session.recorder.wait()
            saved = session.recorder.finish_session()
        if saved is not None and not self.options.quiet:
            self.streams.say(f"[saved; {resume_hint(saved)}]")
        return 0

    def _say_notes(self, backend: "Backend", attachments: "Sequence[Attachment]") -> None:
        if self.options.quiet:
            return
        if backend.note:
            self.streams.say(f"note: {backend.note}")
        for each in attachments:
            self.streams.say(f"[{one_line(each.name)}: {each.size(backend)}]")

    def _make_session(self, prompt: "PromptInput") -> "ChatSession":
        from localgemma_cli.chat.chat_session import ChatSession

        recorder, conversation = self._open_session(scripted=False)
        return ChatSession(
            system=conversation.system,
            mode=self.options.mode,
            settings=self._settings(OnOverflow.TRIM),
            recorder=recorder,
            make_renderer=self._chat_renderer,
            say=self.streams.say,
            render=self._render,
            conversation=conversation,
            attachments=self._read_files(prompt),
        )

    def _repl_config(self, models: "ModelSwitcher") -> "ReplConfig":
        from localgemma_cli.chat.terminal.prompt import PromptOptions
        from localgemma_cli.chat.terminal.repl import ReplConfig

        input_history = None if self.options.no_save else data_folder() / "input-history"
        return ReplConfig(
            prompt=PromptOptions(self.options.accessible, self.options.vi, input_history),
            plan=lambda: _wrap(models.engine.reasons) or "There is no plan: a server runs the model.",
            report=self._report,
            status=self._status,
        )

    def _open_session(self, *, scripted: bool) -> "tuple[SessionRecorder, Conversation]":
        from localgemma_cli.chat.open_session import open_session

        report = self._report if scripted else self._report_unsaved
        return open_session(self.options, self.engine.model, self.system, report, scripted=scripted)

    def _read_files(self, prompt: "PromptInput") -> "list[Attachment]":
        from localgemma_cli.chat.attachments import Attachment, read_attachment
        from localgemma_cli.chat.prompt_input import is_stdin

        return [
            Attachment("standard input", prompt.attached or "")
            if is_stdin(path)
            else read_attachment(path, pipes=True)
            for path in self.options.file or ()
        ]

    def _settings(self, default: OnOverflow) -> "TurnSettings":
        from localgemma_cli.chat.turn import TurnSettings

        return TurnSettings(self.sampling, self.options.on_overflow or default, self._say_trimmed)

    def _status(self, first: str) -> "AbstractContextManager[ProgressSink]":
        """Progress on the terminal, beginning with the stage `first`."""
        from localgemma_cli.render.progress import show_progress

        quiet = self.options.quiet or self.options.accessible
        return show_progress(self.streams.stderr, quiet=quiet, first=first)

    @property
    def _render(self) -> str:
        """How a terminal shows answers."""
        return "plain" if self.options.plain else "markdown"

    def _renderer(self, run: "RunInfo") -> "Renderer":
        """The writer of one answer; JSON output includes `run`."""
        if self.options.json or self.options.jsonl:
            from localgemma_cli.render.json import JsonLinesRenderer, JsonRenderer

            kind = JsonRenderer if self.options.json else JsonLinesRenderer
            return kind(self.streams.stdout, run)
        return self._chat_renderer(self._render)

    def _chat_renderer(self, kind: str) -> "Renderer":
        stdout = self.streams.stdout
        if stdout.isatty() and kind == "markdown":
            from localgemma_cli.render.markdown import MarkdownRenderer

            return MarkdownRenderer(stdout, redraw=not self.options.accessible)
        from localgemma_cli.render.plain import PlainRenderer

        return PlainRenderer(stdout, sanitize=self.options.sanitize or stdout.isatty())

    def _say_trimmed(self, turns: "Sequence[Turn]", how: str) -> None:
        if self.options.quiet:
            return
        first, last = (f"“{shorten(turn.question.content)}”" for turn in (turns[0], turns[-1]))
        which = f"oldest turn {how}: {first}"
        if len(turns) > 1:
            which = f"{len(turns)} oldest turns {how}: {first} to {last}"
        self.streams.say(f"[context full; {which}]")

    def _report_unsaved(self, error: LocalGemmaError) -> None:
        self._report(error)
        self.streams.say("[this chat is no longer saved]")

    def _report(self, error: LocalGemmaError) -> None:
        self.streams.say(format_error(error))


def _open_terminal() -> TextIO:
    """The keyboard to chat with after standard input was a pipe."""
    try:
        return open("/dev/tty", encoding="utf-8")  # stays open as long as the process
    except OSError:
        raise UsageError("--interactive needs a terminal.", "Remove --interactive.") from None


def _wrap(lines: Sequence[str]) -> str:
    """Wrap lines between words, with their continuation indented."""
    width = max(20, get_terminal_size().columns - 1)
    return "\n".join(fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines)
