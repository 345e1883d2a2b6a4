"""The calls that use a kept model: finding it, and a backend that asks it."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Cancel
from typing import TYPE_CHECKING, Any, cast

from localgemma_cli.conversation import Message
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.events import (
    Event,
    Finished,
    LoadProgress,
    ProgressSink,
    RateMeter,
    Reading,
    Timing,
    Usage,
)
from localgemma_cli.sampling import Sampling
from localgemma_cli.warm.about import BackendAbout, EngineAbout
from localgemma_cli.warm.folder import KeptUnusable, require_private, socket_path
from localgemma_cli.warm.wire import Wire, WireBroken, WireClosed, peer_of

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend
    from localgemma_cli.render.json import RunInfo

_FIRST_SECONDS = 10.0  # a process that says nothing for so long does not work
_SILENCE_SECONDS = 60.0  # importing PyTorch may hold up the signs of life
_LOOK_SECONDS = 0.05

LoadCold = Callable[[ProgressSink], "Backend"]


class KeptEnded(Exception):
    """The process that keeps the model has ended, hangs or failed; the argument is the end of a sentence."""


@dataclass(frozen=True)
class KeptConnection:
    """An open connection to a process that keeps the model of this call."""

    wire: Wire
    engine: EngineAbout


def find_kept(folder: Path, key: str, keep: float) -> KeptConnection | None:
    """The process with this key, or None if there is none; KeptUnusable if what is there cannot be used."""
    path = socket_path(folder, key)
    if not path.exists():
        return None
    require_private(folder)
    connection = connect(path)
    if connection is None:
        return None
    wire = Wire(connection)
    try:
        wire.send({"do": "hello", "keep": keep})
        reply = receive(wire, _FIRST_SECONDS)
        while "alive" in reply:
            reply = receive(wire, _FIRST_SECONDS)
        if "outdated" in reply:
            wire.close()
            return None
        engine = reply["engine"]
        if not isinstance(engine, EngineAbout):
            raise WireBroken("the other program does not speak this protocol")
    except WireClosed:  # it is ending
        wire.close()
        return None
    except (KeptEnded, WireBroken, KeyError, TypeError) as error:
        wire.close()
        why = (
            "does not answer"
            if isinstance(error, KeptEnded)
            else "cannot be used: another program has its socket"
        )
        raise KeptUnusable(why) from error
    return KeptConnection(wire, engine)


def connect(path: Path) -> socket.socket | None:
    """A connection to the socket; None if nobody listens there. KeptUnusable for another user's."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_FIRST_SECONDS)
    try:
        connection.connect(str(path))
        peer = peer_of(connection)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:  # also a timeout
        connection.close()
        raise KeptUnusable(f"cannot be used: {error.strerror or error}") from error
    if peer is not None and peer[1] != os.getuid():
        connection.close()
        raise KeptUnusable("has a socket of another user")
    return connection


def receive(wire: Wire, seconds: float = _SILENCE_SECONDS) -> Mapping[str, Any]:
    """The next reply; KeptEnded if there is none, WireBroken if it is something else."""
    reply = wire.receive(seconds)
    if reply is None:
        raise KeptEnded("does not answer")
    if not isinstance(reply, Mapping):
        raise WireBroken("the other program does not speak this protocol")
    return reply


class KeptBackend:
    """A backend in another process; if that one ends before the answer begins, `cold` loads the model here.

    `say` shows that.
    """

    def __init__(self, wire: Wire, about: BackendAbout, cold: LoadCold, say: Callable[[str], None]) -> None:
        self.name, self.note, self.continues = about.name, about.note, about.continues
        self.context_length = about.context_length
        self._wire, self._load_cold, self._say = wire, cold, say
        self._cold: Backend | None = None

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`."""
        meter, has_begun = RateMeter(), False
        try:
            if self._cold is None:
                for event in self._events(messages, sampling, cancel):
                    has_begun |= not isinstance(event, Reading)
                    if has_begun:
                        meter.tick()
                    yield event
                return
        except KeptEnded as error:
            if has_begun:
                failure = LocalGemmaError(
                    f"The process that keeps the model {error}. The answer is incomplete.",
                    "Send it again: the model is then loaded again.",
                )
                yield Finished("error", Usage(None, None, None), meter.timing(None), None, failure)
                return
            self._give_up(error)
        yield from self._replacement().stream(messages, sampling, cancel)

    def count(self, messages: Sequence[Message]) -> int | None:
        return cast(int | None, self._call("count", messages))

    def prompt(self, messages: Sequence[Message]) -> str | None:
        return cast(str | None, self._call("prompt", messages))

    def recognizes(self, answer: Message) -> bool:
        return bool(self._call("recognizes", answer))

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        return list(self._call("score", messages, answers))

    def _events(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Raises KeptEnded. The wait for other answers counts as time of this one."""
        started, waited, stopping = time.perf_counter(), 0.0, False
        with _as_ended():
            self._wire.send({"do": "stream", "messages": messages, "sampling": sampling})
        heard = time.monotonic()
        try:
            while True:
                with _as_ended():
                    if cancel.is_set() and not stopping:
                        stopping = True
                        self._wire.send({"do": "cancel"})
                    reply = self._wire.receive(_LOOK_SECONDS)
                if reply is None:
                    if time.monotonic() - heard > _SILENCE_SECONDS:
                        raise KeptEnded("does not answer")
                    continue
                heard = time.monotonic()
                match reply:
                    case {"begun": _}:
                        waited = time.perf_counter() - started
                    case {"event": Finished() as finished}:
                        break
                    case {"event": event}:
                        yield event
                    case _:
                        _raise_failure(reply)
        except GeneratorExit:  # the rest is not needed, but the next request needs the connection
            with suppress(KeptEnded, LocalGemmaError), _as_ended():
                if not stopping:
                    self._wire.send({"do": "cancel"})
                while not isinstance((reply := receive(self._wire)).get("event"), Finished):
                    _raise_failure(reply)
            raise
        yield replace(finished, timing=_later(finished.timing, waited))

    def _call(self, name: str, *arguments: object) -> Any:
        if self._cold is None:
            try:
                with _as_ended():
                    self._wire.send({"do": "call", "name": name, "arguments": arguments})
                    while "result" not in (reply := receive(self._wire)):
                        _raise_failure(reply)
                return reply["result"]
            except KeptEnded as error:
                self._give_up(error)
        return getattr(self._replacement(), name)(*arguments)

    def _give_up(self, error: KeptEnded) -> None:
        self._wire.close()
        self._say(describe_loss(error))

    def _replacement(self) -> "Backend":
        if self._cold is None:
            self._cold = self._load_cold(_ignore)
        return self._cold


def load_kept(wire: Wire, cold: LoadCold, say: Callable[[str], None], progress: ProgressSink) -> "Backend":
    """The backend once the other process has loaded the model; from `cold` if that process ends.

    Raises what loading raised.
    """
    heard = time.monotonic()
    try:
        with _as_ended():
            wire.send({"do": "load"})
            while True:
                reply = wire.receive(_LOOK_SECONDS)
                if reply is None:
                    progress(LoadProgress("waiting for the process that keeps the model"))
                    if time.monotonic() - heard > _SILENCE_SECONDS:
                        raise KeptEnded("does not answer")
                    continue
                heard = time.monotonic()
                match reply:
                    case {"loaded": BackendAbout() as about}:
                        return KeptBackend(wire, about, cold, say)
                    case {"alive": LoadProgress() as latest}:
                        progress(latest)
                    case _:
                        _raise_failure(reply)
    except KeptEnded as error:
        wire.close()
        say(describe_loss(error))
        return cold(progress)
    except BaseException:  # what the load raised there, or Ctrl-C here
        wire.close()
        raise


class KeptEngine:
    """A kept model as a `ChatEngine`; `cold` is used if its process ends before it answers."""

    def __init__(self, connection: KeptConnection, cold: LoadCold, say: Callable[[str], None]) -> None:
        about = connection.engine
        self.model, self.label, self.introduction = about.model, about.label, about.introduction
        self.warnings, self.reasons = about.warnings, about.reasons
        self._run, self._wire, self._cold, self._say = about.run, connection.wire, cold, say

    def load(self, progress: ProgressSink) -> "Backend":
        return load_kept(self._wire, self._cold, self._say, progress)

    def run(self, load_seconds: float) -> "RunInfo":
        from localgemma_cli.render.json import RunInfo

        return RunInfo(**{**self._run, "load_seconds": load_seconds})


def describe_loss(why: Exception | str, then: str = "The model is loaded for this call.") -> str:
    """The line for a user whose call cannot use the process."""
    return f"warning: The process that keeps the model {why}. {then}"


@contextmanager
def _as_ended() -> Iterator[None]:
    try:
        yield
    except WireBroken as error:
        raise KeptEnded("has ended") from error


def _raise_failure(reply: Any) -> None:
    """Raise what the other process reports, or KeptEnded; a sign of life passes."""
    match reply:
        case {"alive": _}:
            return
        case {"error": LocalGemmaError() as error}:
            raise error
        case {"broken": text}:
            raise KeptEnded("failed") from RuntimeError(text)
    raise KeptEnded("sends something unknown")


def _later(timing: Timing, seconds: float) -> Timing:
    """The timing of an answer that was asked for `seconds` before it began."""
    return replace(
        timing,
        time_to_first_token_seconds=timing.time_to_first_token_seconds + seconds,
        total_seconds=timing.total_seconds + seconds,
    )


def _ignore(_: LoadProgress) -> None:
    pass
