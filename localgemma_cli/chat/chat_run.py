"""What the chat command does once its options are read: load, answer, or hand over to the chat."""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from shutil import get_terminal_size
from textwrap import fill
from threading import Event as Cancel
from typing import TYPE_CHECKING, TextIO

from localgemma_cli.environment import Streams, data_folder
from localgemma_cli.errors import LocalGemmaError, NotFoundError, SavingError, UsageError
from localgemma_cli.render.messages import colour_prefix, format_error
from localgemma_cli.sampling import Mode, OnOverflow, Sampling
from localgemma_cli.sanitize import one_line

if TYPE_CHECKING:
    from localgemma_cli.chat.attachments import Attachment
    from localgemma_cli.chat.engine import ChatEngine
    from localgemma_cli.chat.prompt_input import PromptInput
    from localgemma_cli.chat.recording import SessionRecorder
    from localgemma_cli.chat.turn import TurnSettings
    from localgemma_cli.conversation import Conversation, Turn
    from localgemma_cli.events import ProgressSink
    from localgemma_cli.render.base import Renderer
    from localgemma_cli.render.json import RunInfo
    from localgemma_cli.sessions.store import Store


@dataclass(frozen=True)
class OutputOptions:
    """How answers and notices are written."""

    json: bool
    jsonl: bool
    quiet: bool
    verbose: bool
    plain: bool
    sanitize: bool
    accessible: bool
    vi: bool


@dataclass(frozen=True)
class SaveOptions:
    """`session` by name, or the latest one; `keep` False writes nothing."""

    session: str | None
    latest: bool
    keep: bool


@dataclass(frozen=True)
class ChatRun:
    """Everything decided; what is left is to load and to answer."""

    streams: Streams
    target: "ChatEngine"
    choose: Callable[[str], "ChatEngine"]  # another, by what `--model` takes
    mode: Mode
    system: str | None
    sampling: Sampling
    on_overflow: OnOverflow | None
    files: Sequence[str]
    manner: OutputOptions
    saving: SaveOptions

    def explain(self) -> None:
        if not self.manner.quiet:
            for warning in self.target.warnings:
                self.streams.say(one_line(f"warning: {warning}"), colour_prefix(self.streams.stderr))
        if self.manner.verbose:
            for reason in self.target.reasons:
                self.streams.say(reason)

    def answer(self, incoming: "PromptInput") -> int:
        from localgemma_cli.chat.attachments import prepend_attachments
        from localgemma_cli.chat.background_load import load_and_wait
        from localgemma_cli.chat.interrupt import InterruptibleBackend
        from localgemma_cli.chat.one_shot import answer_once

        assert incoming.prompt is not None  # `read_prompt_input` gives one wherever no chat follows
        attached = self._attached(incoming)
        recorder, conversation = self._opened(scripted=True)
        started = time.perf_counter()
        cancel = Cancel()
        with self._status("starting") as progress:
            loaded = load_and_wait(self.target.load, progress)
        backend = InterruptibleBackend(loaded, lambda: cancel, self._status)
        if not self.manner.quiet:
            if backend.note:
                self.streams.say(f"note: {backend.note}")
            for each in attached:
                self.streams.say(f"[{one_line(each.name)}: {each.size(backend)}]")
        run = self.target.run(time.perf_counter() - started)
        prompt = prepend_attachments(incoming.prompt, attached)
        settings = self._settings(OnOverflow.ERROR)
        if conversation.turns:
            from localgemma_cli.chat.resume import drop_foreign_ids

            conversation = drop_foreign_ids(conversation, backend, self.streams.say)
        return answer_once(
            backend, conversation, self.mode, prompt, settings, lambda: self._renderer(run), recorder, cancel
        )

    def converse(self, incoming: "PromptInput") -> int:
        from localgemma_cli.chat.chat_session import ChatSession
        from localgemma_cli.chat.model_switcher import ModelSwitcher
        from localgemma_cli.chat.terminal.repl import Repl, ReplConfig

        keyboard = self.streams.stdin if self.streams.stdin.isatty() else _controlling_terminal()
        recorder, conversation = self._opened(scripted=False)
        session = ChatSession(
            system=conversation.system,
            mode=self.mode,
            settings=self._settings(OnOverflow.TRIM),
            recorder=recorder,
            make_renderer=self._chat_renderer,
            say=self.streams.say,
            render="plain" if self.manner.plain else "markdown",
            conversation=conversation,
            attachments=self._attached(incoming),
        )
        models = ModelSwitcher(self.target, self.choose)
        frame = ReplConfig(
            label=lambda: models.model.label,
            plan=lambda: _wrapped(models.model.reasons) or "A server makes its own plan.",
            model=lambda: models.model.model,
            report=self._report,
            quiet=self.manner.quiet,
            accessible=self.manner.accessible,
            status=self._status,
            vi=self.manner.vi,
            input_history=data_folder() / "input-history" if self.saving.keep else None,
        )
        if not self.manner.quiet:
            self.streams.say(self.target.introduction)
            self.streams.say("/help lists the commands; Ctrl-D leaves.")
        if conversation.turns:
            session.replay()
        Repl(session, frame, models, self.streams, keyboard).run(incoming.prompt)
        with self._status("saving"):
            recorder.wait()
            saved = recorder.leave()
        if saved is not None and not self.manner.quiet:
            name = one_line(shlex.quote(saved))
            self.streams.say(f"[saved: localgemma --session {name} goes on with it]")
        return 0

    def _status(self, first: str) -> "AbstractContextManager[ProgressSink]":
        """What is waited for, on the terminal."""
        from localgemma_cli.render.progress import show_progress

        quiet = self.manner.quiet or self.manner.accessible
        return show_progress(self.streams.stderr, quiet=quiet, first=first)

    def _attached(self, incoming: "PromptInput") -> "list[Attachment]":
        from localgemma_cli.chat.attachments import Attachment, read_attachment
        from localgemma_cli.chat.prompt_input import is_stdin

        return [
            Attachment("standard input", incoming.attached or "")
            if is_stdin(path)
            else read_attachment(path, pipes=True)
            for path in self.files
        ]

    def _opened(self, *, scripted: bool) -> tuple["SessionRecorder", "Conversation"]:
        """Where this conversation is saved, and what was said in it before; `--system` replaces its own.

        What a script asks is saved only where it names a conversation.
        """
        from localgemma_cli.chat.recording import SessionRecorder
        from localgemma_cli.conversation import Conversation
        from localgemma_cli.sessions.store import default_path

        store = None
        wanted = self.saving.session is not None or self.saving.latest
        saves = self.saving.keep and (wanted or not scripted)
        if saves or (wanted and default_path().exists()):
            store = self._store(needed=wanted)
        tell = self._report if scripted else self._unsaved
        recorder = SessionRecorder(
            store if saves else None, self.target.model, tell, asked_only=not self.saving.keep
        )
        if not wanted:
            return recorder, Conversation(self.system)
        if self.saving.session is not None:
            id = store.named(self.saving.session) if store else None
        elif (id := store.latest() if store else None) is None:
            raise NotFoundError("There is no saved conversation yet.", "Begin one: localgemma")
        if store is None or id is None:
            recorder.name = self._new_name(store)
            return recorder, Conversation(self.system)
        recorder.session = id
        conversation = store.conversation(id, self.target.model)
        if self.system is not None:
            recorder.set_system(self.system)
            conversation = replace(conversation, system=self.system)
        return recorder, conversation

    def _new_name(self, store: "Store | None") -> str | None:
        """Of the session that is to be made; raises where there can be none of that name."""
        from localgemma_cli.sessions.names import parse_number, validate_name

        name = self.saving.session
        if name is not None and store is not None and parse_number(name) is not None:
            store.find(name)  # says what there is
        return None if name is None else validate_name(name)

    def _store(self, *, needed: bool) -> "Store | None":
        from localgemma_cli.sessions.opening import open_store

        try:
            return open_store()
        except SavingError as error:
            if needed:
                raise
            self._unsaved(error)
            return None

    def _settings(self, default: OnOverflow) -> "TurnSettings":
        from localgemma_cli.chat.turn import TurnSettings

        return TurnSettings(self.sampling, self.on_overflow or default, self._tell_trimmed)

    def _renderer(self, run: "RunInfo") -> "Renderer":
        """For scripts `run` is what they are told of the model."""
        if self.manner.json or self.manner.jsonl:
            from localgemma_cli.render.json import JsonLinesRenderer, JsonRenderer

            kind = JsonRenderer if self.manner.json else JsonLinesRenderer
            return kind(self.streams.stdout, run)
        return self._chat_renderer("plain" if self.manner.plain else "markdown")

    def _chat_renderer(self, kind: str) -> "Renderer":
        stdout = self.streams.stdout
        if stdout.isatty() and kind == "markdown":
            from localgemma_cli.render.markdown import MarkdownRenderer

            return MarkdownRenderer(stdout, redraw=not self.manner.accessible)
        from localgemma_cli.render.plain import PlainRenderer

        return PlainRenderer(stdout, sanitize=self.manner.sanitize or stdout.isatty())

    def _tell_trimmed(self, turns: "Sequence[Turn]", how: str) -> None:
        from localgemma_cli.chat.slash.outcome import short

        if self.manner.quiet:
            return
        first, last = (f"“{short(turn.question.content)}”" for turn in (turns[0], turns[-1]))
        which = f"the oldest turn is {how}: {first}"
        if len(turns) > 1:
            which = f"the {len(turns)} oldest turns are {how}: from {first} to {last}"
        self.streams.say(f"[the context is full: {which}]")

    def _unsaved(self, error: SavingError) -> None:
        self._report(error)
        self.streams.say("[the chat goes on unsaved]")

    def _report(self, error: LocalGemmaError) -> None:
        self.streams.say(format_error(error))


def _controlling_terminal() -> TextIO:
    """Where the chat goes on after standard input was a pipe."""
    try:
        return open("/dev/tty", encoding="utf-8")  # open as long as the process
    except OSError:
        raise UsageError("There is no terminal to chat on.", "Leave --interactive out.") from None


def _wrapped(lines: Sequence[str]) -> str:
    """To the terminal, between words."""
    width = max(20, get_terminal_size().columns - 1)
    return "\n".join(fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines)
