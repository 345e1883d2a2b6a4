"""One run of `localgemma serve`: choose the engine, bind, load, serve, clean up."""

import signal
import socket
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.engine import ChatEngine, LocalEngine
from localgemma_cli.chat.engine_choice import EngineChoice
from localgemma_cli.chat.start_engine import explain_engine, start_engine
from localgemma_cli.documents import failure_reason
from localgemma_cli.environment import Streams, expand_home
from localgemma_cli.errors import ExitCode, LocalGemmaError, UsageError
from localgemma_cli.models.own_models import own_model
from localgemma_cli.options import Options
from localgemma_cli.planning.rows import plan_conversations
from localgemma_cli.render.messages import colour_prefix
from localgemma_cli.sampling import Mode, Sampling, sampling_for
from localgemma_cli.sanitize import Block, one_line
from localgemma_cli.serve.api_key import read_key
from localgemma_cli.serve.listeners import (
    HAS_UNIX_SOCKETS,
    Address,
    bind_address,
    bind_unix,
    default_socket,
)


@dataclass(frozen=True)
class ServeRun:
    """`places`: where each option's value comes from; `processes`: how many share a local model's layers."""

    streams: Streams
    options: Options
    places: Mapping[str, str]
    processes: int = 1

    def run(self) -> int:
        """Serve until a signal; returns the exit code."""
        options, own = self.options, own_model(self.options.model)
        if options.queue < 1:
            raise UsageError(f"--queue must be at least 1 (got {options.queue}).", "Default: 32.")
        defaults = sampling_for(Mode.CHAT, own.sampling if own else None, **options.values_for(Sampling))
        key = read_key(options.api_key_file)
        engine = self._choose()
        explain_engine(engine, self.streams, options)
        address = bind_address(options.host, options.port)
        if key is None and not address.is_loopback:
            raise UsageError(
                f"Other machines could use the model at {address.url} without a key.",
                "Set a key with --api-key-file or LOCALGEMMA_SERVE_KEY, or use --host 127.0.0.1.",
            )
        with self._unix_socket(address) as (unix, path):
            backend = start_engine(engine, self.streams, options, self.places)
            return self._serve(engine, backend, address, unix, path, defaults, key)

    def _serve(
        self,
        engine: ChatEngine,
        backend: Backend,
        address: Address,
        unix: socket.socket | None,
        path: Path | None,
        defaults: Sampling,
        key: str | None,
    ) -> int:
        from localgemma_cli.serve.answer_queue import AnswerQueue
        from localgemma_cli.serve.application import Application, Served
        from localgemma_cli.serve.server import serve_until_signal

        queue = AnswerQueue(backend, self.options.queue)
        served = Served(
            queue,
            backend,
            engine.model,
            tuple(each for each in (self.options.model, _short_name(engine)) if each),
            defaults,
            key,
            self._log,
            self._note_failure,
        )
        sockets = [each for each in (address.socket, unix) if each is not None]
        ended_by = serve_until_signal(
            Application(served), queue, sockets, lambda: self._announce(engine.model, address, path, key)
        )
        return ExitCode.INTERRUPTED if ended_by == signal.SIGINT else ExitCode.OK

    def _choose(self) -> ChatEngine:
        """The engine of the options, with room for several conversations."""
        engine = EngineChoice(self.options, self.places, self.streams.say, self.processes).first()
        if isinstance(engine, LocalEngine):
            return replace(engine, plan=plan_conversations(engine.plan))
        return engine

    @contextmanager
    def _unix_socket(self, address: Address) -> Iterator[tuple[socket.socket | None, Path | None]]:
        """The Unix socket beside the address, and its path; removed at the end.

        Without --socket, a place where none is possible is only noted.
        """
        given = self.options.socket
        if given == "none" or not HAS_UNIX_SOCKETS:
            yield None, None
            return
        path = expand_home(given) if given else default_socket(address.port)
        try:
            unix = bind_unix(path, own_folder=not given)
        except (OSError, LocalGemmaError) as error:
            reason = error.message if isinstance(error, LocalGemmaError) else f"{failure_reason(error)}."
            if given:
                raise UsageError(f"Cannot listen on {path}: {reason}", "Choose another --socket.") from None
            if self.options.verbose:
                self.streams.say(f"No Unix socket: {path}: {reason}")
            yield None, None
            return
        try:
            yield unix, path
        finally:
            unix.close()
            with suppress(OSError):
                path.unlink()

    def _announce(self, model: str, address: Address, path: Path | None, key: str | None) -> None:
        """Say what is exposed; the address comes last, so that a program can wait for that line."""
        if self.options.quiet:
            return
        say = self.streams.say
        if path is not None:
            say(f"Unix socket: {path}")
        if not address.is_loopback:
            say(
                f"Exposed: every machine that reaches {address.url} can use the model with the key."
                " Prompts and the key travel unencrypted."
            )
        elif key is None:
            say("No key: every user and program of this machine can use the model.")
        say(f"Serving {one_line(model)} at {address.url}/v1; Ctrl-C stops.")

    def _log(self, line: str) -> None:
        if self.options.verbose:
            self.streams.say(one_line(line))

    def _note_failure(self, error: BaseException) -> None:
        """Show an error that is not the client's; with -v, where it happened."""
        if self.options.verbose:
            self.streams.say(Block("".join(traceback.format_exception(error)).rstrip()))
        elif not self.options.quiet:
            self.streams.say(one_line(f"error: {error}"), colour_prefix(self.streams.stderr))


def _short_name(engine: ChatEngine) -> str | None:
    """The name in `models list` of a model on this machine."""
    return engine.plan.model.name if isinstance(engine, LocalEngine) else None
