"""Runs actions while no prompt is up: waits for the model, stops at Ctrl-C, reports errors."""

import asyncio
from collections.abc import Callable
from functools import partial
from threading import Event as Cancel
from threading import current_thread, main_thread
from typing import Any, TypeVar

from prompt_toolkit.application import Application, get_app, run_in_terminal
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.keys import Keys

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.interrupt import InterruptibleBackend, Status, cancel_on_sigint
from localgemma_cli.chat.model_switcher import ModelSwitcher
from localgemma_cli.chat.terminal.terminal_state import read_ahead, read_pending_keys
from localgemma_cli.errors import InterruptedAnswer, LocalGemmaError, as_user_error

_WATCH_SECONDS = 0.1

Value = TypeVar("Value")


class ModelRunner:
    """Runs actions. `cancel` is set by Ctrl-C during the latest action; `status` shows what is waited for."""

    def __init__(
        self,
        session: ChatSession,
        models: ModelSwitcher,
        keyboard: Input,
        status: Status,
        report: Callable[[LocalGemmaError], None],
    ) -> None:
        self.cancel = Cancel()
        self._session, self._models, self._keyboard = session, models, keyboard
        self._status, self._report = status, report
        self._noted: Backend | None = None  # the last backend whose note was shown
        models.wrap = lambda backend: InterruptibleBackend(backend, lambda: self.cancel, status)

    def run(self, action: Callable[[], Value]) -> Value | None:
        """The result of `action`; None if it raised an error, which is reported. Ctrl-C sets `cancel`."""
        self.cancel = Cancel()
        recorder = self._session.recorder
        recorder.waiting = self._stop_waiting
        if recorder.store is not None:
            recorder.store.waiting = self._stop_waiting
        with cancel_on_sigint(self.cancel, second_raises=False):
            try:
                return action()
            except LocalGemmaError as error:
                if self.is_final(error):
                    raise
                self._report(error)
        return None

    def run_with_model(self, action: Callable[[Backend], Value]) -> Value | None:
        """As `run`, once the model is loaded; None as well if Ctrl-C comes first."""

        def run() -> Value | None:
            if self._was_cancelled_at_prompt():
                return None
            with read_ahead(self._keyboard):
                backend = self.wait_for_backend()
                if backend is None:
                    return None
                self._show_note(backend)
                return action(backend)

        return self.run(run)

    def is_final(self, error: BaseException) -> bool:
        """Whether loading raised it, and there is no earlier model to return to."""
        return error is self._models.load.error and not self._models.go_back()

    def ready_backend(self) -> Backend | None:
        """The backend if it is loaded; does not wait."""
        load = self._models.load
        return load.result() if load.done.is_set() and load.error is None else None

    def wait_for_backend(self) -> Backend | None:
        """Wait for the model and show its progress; None if Ctrl-C comes first."""
        load = self._models.load
        load.start()
        if not load.done.is_set():
            with self._status("starting") as progress:
                while not load.done.wait(_WATCH_SECONDS):
                    progress(load.progress)
                    if self.cancel.is_set():
                        return None
        backend = load.result()
        if self._models.switched:
            self._session.answered_by(self._models.engine.model)
        return backend

    def watch_load(self) -> None:
        """While the prompt is up: load, redraw the toolbar, and end the prompt if the load fails."""
        load = self._models.load
        if not load.done.is_set() or load.error is not None:
            app = get_app()
            app.create_background_task(self._watch(app))

    async def _watch(self, app: Application[Any]) -> None:
        await asyncio.sleep(0)  # the prompt is drawn first
        while True:
            self._models.load.start()
            while not self._models.load.done.is_set():
                await asyncio.sleep(_WATCH_SECONDS)
                app.invalidate()
            if (error := self._models.load.error) is None:
                return
            if not self._models.go_back():
                app.exit(exception=error)
                return
            known = error if isinstance(error, LocalGemmaError) else as_user_error(error)
            await run_in_terminal(partial(self._report, known))

    def _show_note(self, backend: Backend) -> None:
        if backend.note and backend is not self._noted:
            self._session.say(f"[{backend.note}]")
        self._noted = backend

    def _was_cancelled_at_prompt(self) -> bool:
        """Whether a Ctrl-C came so soon after Enter that the prompt still read it as a key."""
        presses = read_pending_keys(self._keyboard)
        others = [press for press in presses if press.key != Keys.ControlC]
        store_typeahead(self._keyboard, others)
        if len(others) < len(presses):
            self.cancel.set()
        return self.cancel.is_set()

    def _stop_waiting(self) -> None:
        """At Ctrl-C, stop waiting for another program that writes the file; a thread still saves."""
        if self.cancel.is_set() and current_thread() is main_thread():
            raise InterruptedAnswer(
                "Stopped: another program is writing the saved conversations.", "Send it again to retry."
            )
