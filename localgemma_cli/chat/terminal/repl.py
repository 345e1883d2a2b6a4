"""The interactive chat: reads a line, runs it, shows the result, until the user leaves."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Event as Cancel
from typing import TextIO

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.interrupt import Status
from localgemma_cli.chat.model_switcher import ModelSwitcher
from localgemma_cli.chat.phrases import format_count, shorten
from localgemma_cli.chat.prompt_text import PromptText, as_pasted
from localgemma_cli.chat.slash import slash_commands as slash
from localgemma_cli.chat.slash.actions import KEYS, perform
from localgemma_cli.chat.slash.outcome import (
    AskQuestion,
    CommandContext,
    CopyText,
    EditText,
    LoopAction,
    Outcome,
    SwitchModel,
)
from localgemma_cli.chat.terminal.clipboard import copy_to_clipboard
from localgemma_cli.chat.terminal.completion import ChatCompleter
from localgemma_cli.chat.terminal.model_runner import ModelRunner
from localgemma_cli.chat.terminal.prompt import ChatPrompt, PromptOptions
from localgemma_cli.chat.terminal.toolbar import format_toolbar
from localgemma_cli.environment import Streams
from localgemma_cli.errors import EXIT_EXCEPTIONS, LocalGemmaError, as_user_error
from localgemma_cli.render.base import Answer
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import normalize

_LISTED_SESSIONS = 20  # that completion offers


@dataclass(frozen=True)
class ReplConfig:
    """What the loop uses: `plan` returns the loading decisions in words, `report` prints an error, `status`
    a spinner.
    """

    prompt: PromptOptions
    plan: Callable[[], str]
    report: Callable[[LocalGemmaError], None]
    status: Status


class Repl:
    def __init__(
        self,
        session: ChatSession,
        models: ModelSwitcher,
        config: ReplConfig,
        streams: Streams,
        keyboard: TextIO,
    ) -> None:
        self._session, self._models, self._report = session, models, config.report
        self._terminal = streams.stdout if streams.stdout.isatty() else streams.stderr
        self._prompt = ChatPrompt(
            config.prompt,
            self._terminal,
            keyboard,
            ChatCompleter(KEYS, self._session_names),
            self._toolbar,
            session.say,
            config.report,
            self._keep_turns,
        )
        self._runner = ModelRunner(session, models, self._prompt.input, config.status, config.report)
        self._context = CommandContext(
            config.plan,
            lambda: models.engine.model,
            self._runner.wait_for_backend,
            self._runner.ready_backend,
        )
        self._has_left = self._raises = False
        self._unknown = ""  # a long line that named no command; Enter again sends it

    def run(self, first: str | None) -> None:
        """Answer `first`, then chat until the user leaves; raises what loading raised."""
        with self._prompt.own_terminal(self._interrupt):
            draft = self._run_line(self._send, as_pasted(first)) if first else PromptText()
            while not self._has_left:
                try:
                    self._raises = True
                    line = self._prompt.read(
                        draft, cancelled=self._runner.cancel.is_set(), on_open=self._runner.watch_load
                    )
                    draft = self._run_line(self._handle, line)
                    self._raises = False
                except KeyboardInterrupt:
                    self._raises = False  # at once: the next Ctrl-C may be on its way
                    draft = PromptText()
                except EOFError:
                    return

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt for a Ctrl-C where `run` handles it; between two lines it has no effect."""
        if self._raises:
            raise KeyboardInterrupt

    def _run_line(self, handle: Callable[[PromptText], PromptText], line: PromptText) -> PromptText:
        """The next draft; an unexpected error is reported and keeps `line`: only the user ends a chat."""
        self._runner.cancel = Cancel()
        with self._prompt.at_work():
            try:
                return handle(line)
            except EXIT_EXCEPTIONS:
                raise
            except BaseException as error:  # a panic in a Rust library is not an Exception
                if self._runner.is_final(error):
                    raise
                self._report(as_user_error(error))
                return line

    def _handle(self, line: PromptText) -> PromptText:
        """Run a line; returns what is left of it to edit if it was not sent."""
        line = line.map_parts(normalize)
        match slash.parse(line):
            case slash.Question(question):
                return PromptText() if self._ask(AskQuestion(question)) else line
            case slash.Command(name, argument):
                self._keep_turns()
                return self._run_command(name, argument)
            case slash.UnknownCommand() if line.text == self._unknown:
                return self._send(line.strip())
            case slash.UnknownCommand() as unknown:
                return self._refuse(unknown, line)
            case None:
                self._keep_turns()
        return PromptText()

    def _send(self, question: PromptText) -> PromptText:
        return PromptText() if self._ask(AskQuestion(question)) else question

    def _refuse(self, unknown: slash.UnknownCommand, line: PromptText) -> PromptText:
        hint = f"Did you mean {unknown.nearest}?" if unknown.nearest else "/help lists the commands."
        send = (
            "Press Enter again to send it as text." if unknown.long else "Begin with // to send it as text."
        )
        self._session.say(f"Unknown command: {shorten(unknown.name)}. {hint} {send}")
        self._unknown = line.text if unknown.long else ""
        return line if unknown.long else PromptText()

    def _keep_turns(self) -> None:
        """Cancel an edit: the next question replaces no turns."""
        self._session.rewind = 0

    def _run_command(self, name: str, argument: str) -> PromptText:
        outcome = self._runner.run(lambda: perform(self._session, self._context, name, argument))
        return self._follow(outcome)

    def _follow(self, outcome: Outcome) -> PromptText:
        """Do what a command asks for; returns the next draft."""
        match outcome:
            case AskQuestion():
                self._ask(outcome)
                self._keep_turns()
            case EditText(text):
                self._prompt.open_editor_next()
                return as_pasted(text)
            case CopyText(text):
                self._session.say(copy_to_clipboard(text, self._terminal))
            case SwitchModel(name):
                self._models.switch(name)
                self._session.say(f"[switching to {one_line(name)}; the conversation is kept]")
            case LoopAction.CONTINUE:
                self._answer(lambda backend: self._session.continue_answer(backend, self._runner.cancel))
            case LoopAction.SUMMARIZE:
                self._runner.run_with_model(self._summarize)
            case LoopAction.SWAP_ENTER:
                self._swap_enter()
            case LoopAction.EXIT:
                self._has_left = True
        return PromptText()

    def _ask(self, ask: AskQuestion) -> bool:
        """Ask one question; returns whether an answer was kept."""
        return self._answer(
            lambda backend: self._session.ask(backend, ask.question, self._runner.cancel, ask.sampling)
        )

    def _answer(self, action: Callable[[Backend], Answer]) -> bool:
        answer = self._runner.run_with_model(action)
        if answer is not None:
            self._say_end(answer)
        return answer is not None

    def _summarize(self, backend: Backend) -> None:
        self._session.say("[summarizing; Ctrl-C stops it]")
        count = self._session.summarize(backend, self._runner.cancel)
        saved = "; they stay saved" if self._session.recorder.session is not None else ""
        self._session.say(f"[{format_count(count, 'turn')} summarized{saved}]")
        self._session.show(self._session.conversation.turns[0].answer)

    def _swap_enter(self) -> None:
        self._prompt.keys.swapped = not self._prompt.keys.swapped
        how = "starts a new line, Alt-Enter sends" if self._prompt.keys.swapped else "sends"
        self._session.say(f"[Enter {how}]")

    def _say_end(self, answer: Answer) -> None:
        finished = answer.finished
        if finished.error is not None:
            self._report(finished.error)
            self._session.say("[answer cut off; partial answer kept]")
        elif finished.finish_reason == "interrupted":
            if self._session.conversation.turns[-1].answer.content:
                self._session.say("[interrupted; partial answer kept; /continue resumes it]")
            else:
                self._session.say("[interrupted before the answer began; /retry asks again]")
        elif finished.finish_reason == "length":
            self._session.say("[token limit reached; /continue resumes the answer]")
        self._session.say("")

    def _toolbar(self) -> str:
        session, models = self._session, self._models
        backend = self._runner.ready_backend()
        return format_toolbar(
            models.engine.label, backend, models.load.progress, session.last, len(session.attachments)
        )

    def _session_names(self) -> list[str]:
        if (store := self._session.recorder.store) is not None:
            with suppress(LocalGemmaError):
                return [each.handle for each in store.summaries(limit=_LISTED_SESSIONS)]
        return []
