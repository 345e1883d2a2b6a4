"""The server of a kept model: requests in turn, a client that goes, and when the process ends."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Cancel
from threading import Thread

import pytest
from support.chat import GREEDY, demo_backend
from support.hub_calls import wait_until

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.engine import LocalEngine, ModelFiles
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError, NotFoundError
from localgemma_cli.events import Delta, Event, Finished, LoadProgress, ProgressSink, Reading
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.warm.about import BackendAbout
from localgemma_cli.warm.client import KeptBackend, KeptConnection, find_kept, load_kept
from localgemma_cli.warm.control import list_kept, stop_kept
from localgemma_cli.warm.folder import KeptUnusable, socket_path
from localgemma_cli.warm.process import listen
from localgemma_cli.warm.server import KeepTask, KeptServer
from localgemma_cli.warm.wire import Wire

KEY = "0" * 40
QUESTION = (Message("user", "Who are you?"),)
Load = Callable[[ProgressSink], Backend]


@dataclass
class Kept:
    """A server in a thread; `memory_is_short` and `said` can be changed and read."""

    folder: Path
    model_file: Path
    memory_is_short: bool = False

    def __post_init__(self) -> None:
        self.said: list[str] = []
        self.threads: list[Thread] = []

    def serve(self, load: Load = lambda _: demo_backend(), keep: float = 600) -> None:
        source = resolve("demo", revision=None, offline=True)
        plan = make_plan(source.facts, "exact", probe("cpu"), Overrides(device="cpu"), load_presets())
        path = socket_path(self.folder, KEY)
        task = KeepTask(
            LocalEngine(source, plan, "auto"), ModelFiles(self.model_file, None, None), path, keep
        )
        server = KeptServer(listen(path), task, load, lambda: self.memory_is_short)
        self.threads.append(Thread(target=server.serve, daemon=True))
        self.threads[-1].start()

    def connect(self, keep: float = 600) -> KeptConnection:
        found = find_kept(self.folder, KEY, keep)
        assert found is not None
        return found

    def backend(self, cold: Load = lambda _: demo_backend(), keep: float = 600) -> KeptBackend:
        found = load_kept(self.connect(keep).wire, cold, self.said.append, ignore_progress)
        assert isinstance(found, KeptBackend)
        return found

    def wait_for_end(self) -> None:
        self.threads[-1].join(120)
        assert not self.threads[-1].is_alive()


@pytest.fixture
def kept() -> Iterator[Kept]:
    with TemporaryDirectory(prefix="lg-") as name:
        folder = Path(name)
        (folder / "model").write_text("1")
        (folder / "run").mkdir(mode=0o700)
        yield Kept(folder / "run", folder / "model")


class Gated:
    """The demo, whose first answer waits at a gate `after` so many events; `stopped`: cancelled there."""

    name, note, continues, context_length = "local", None, True, 1024

    def __init__(self, after: int = 1) -> None:
        self.gate, self.begun, self.stopped, self._after = Cancel(), 0, 0, after

    def stream(self, messages: object, sampling: object, cancel: Cancel) -> Iterator[Event]:
        self.begun += 1
        for number, event in enumerate(demo_backend().stream(QUESTION, GREEDY, cancel), start=1):
            yield event
            if (number, self.begun) == (self._after, 1):
                while not self.gate.is_set() and not cancel.is_set():
                    time.sleep(0.01)
                self.stopped += cancel.is_set()

    def count(self, messages: tuple[Message, ...]) -> int | None:
        return demo_backend().count(messages)


def never(_: ProgressSink) -> Backend:
    raise AssertionError


def test_every_call_of_a_backend_has_the_result_of_the_model_itself(kept: Kept) -> None:
    here = demo_backend()
    kept.serve()
    there = kept.backend(never)
    assert (there.name, there.note, there.continues) == (here.name, here.note, here.continues)
    assert (there.context_length, there.count(QUESTION)) == (here.context_length, here.count(QUESTION))
    assert there.prompt(QUESTION) == here.prompt(QUESTION)
    assert there.score(QUESTION, ["I", "you"]) == here.score(QUESTION, ["I", "you"])
    events = list(there.stream(QUESTION, replace(GREEDY, logprobs=2), Cancel()))
    expected = list(here.stream(QUESTION, replace(GREEDY, logprobs=2), Cancel()))
    assert texts(events) == texts(expected)
    (end, other) = (events[-1], expected[-1])
    assert isinstance(end, Finished)
    assert isinstance(other, Finished)
    assert end.token_ids == other.token_ids
    assert [each.id for each in end.logprobs or ()] == [each.id for each in other.logprobs or ()]
    answer = Message("assistant", "".join(texts(events)), end.token_ids)
    assert there.recognizes(answer)
    assert not there.recognizes(replace(answer, content="x"))
    with pytest.raises(ContextOverflowError) as error:
        list(there.stream((Message("user", "x " * 2000),), GREEDY, Cancel()))
    assert error.value.hint == "Shorten the prompt."


def texts(events: list[Event]) -> list[str]:
    return [each.text for each in events if isinstance(each, Delta)]


def test_a_cancelled_answer_ends_within_two_tokens_and_the_connection_remains(kept: Kept) -> None:
    gated = Gated(after=5)
    kept.serve(lambda _: gated)  # type: ignore[arg-type,return-value]  # what is needed of a backend
    backend, cancel = kept.backend(never), Cancel()
    tokens = 0
    for event in backend.stream(QUESTION, GREEDY, cancel):
        tokens += isinstance(event, Delta)
        if tokens == 3:
            cancel.set()
    assert isinstance(event, Finished)
    assert (event.finish_reason, gated.stopped) == ("interrupted", 1)
    assert backend.count(QUESTION) == demo_backend().count(QUESTION)


def test_an_answer_that_is_not_read_to_its_end_is_stopped(kept: Kept) -> None:
    gated = Gated(after=5)
    kept.serve(lambda _: gated)  # type: ignore[arg-type,return-value]  # what is needed of a backend
    backend = kept.backend(never)
    stream = backend.stream(QUESTION, GREEDY, Cancel())
    while not isinstance(next(stream), Delta):
        pass
    stream.close()
    assert isinstance(list(backend.stream(QUESTION, GREEDY, Cancel()))[-1], Finished)


def test_requests_wait_their_turn_and_a_client_that_goes_frees_the_model(kept: Kept) -> None:
    gated = Gated()
    kept.serve(lambda _: gated)  # type: ignore[arg-type,return-value]  # what is needed of a backend
    first, second = kept.backend(never), kept.backend(never)
    hung = first.stream(QUESTION, GREEDY, Cancel())
    assert isinstance(next(hung), Reading)
    answers: list[Event] = []
    waiting = Thread(target=lambda: answers.extend(second.stream(QUESTION, GREEDY, Cancel())))
    waiting.start()
    (process,) = list_kept(kept.folder)
    assert process.status is not None
    assert process.status.state == "in use"
    assert gated.begun == 1
    gated.stopped = 0
    first._wire.close()  # as the end of its process does
    wait_until(lambda: gated.stopped == 1)
    gated.gate.set()
    waiting.join(120)
    end = answers[-1]
    assert isinstance(end, Finished)
    assert (end.finish_reason, gated.begun) == ("stop", 2)
    assert end.timing.total_seconds >= end.timing.time_to_first_token_seconds > 0


def test_the_process_ends_when_it_was_idle_for_the_time_of_the_last_call(kept: Kept) -> None:
    kept.serve(keep=600)
    kept.backend(never, keep=0.1)._wire.close()
    kept.wait_for_end()
    assert find_kept(kept.folder, KEY, 600) is None


def test_a_connection_without_a_call_does_not_prolong_it_and_one_with_a_call_does(kept: Kept) -> None:
    kept.serve()
    connection = kept.connect(keep=0.1)
    time.sleep(1.5)
    (process,) = list_kept(kept.folder)
    assert process.status is not None
    assert process.status.state == "in use"
    connection.wire.close()
    kept.wait_for_end()


def test_an_idle_process_ends_when_memory_is_short(kept: Kept) -> None:
    kept.serve()
    backend = kept.backend(never)
    kept.memory_is_short = True
    time.sleep(1)
    assert isinstance(list(backend.stream(QUESTION, GREEDY, Cancel()))[-1], Finished)
    backend._wire.close()
    kept.wait_for_end()


def test_a_changed_file_of_the_model_is_noticed_by_the_next_call(kept: Kept) -> None:
    kept.serve()
    kept.backend(never)._wire.close()
    kept.model_file.write_text("22")
    assert find_kept(kept.folder, KEY, 600) is None
    kept.wait_for_end()


def test_an_ended_process_leaves_the_socket_of_its_successor(kept: Kept) -> None:
    kept.serve()
    kept.connect().wire.close()
    kept.model_file.write_text("22")
    assert find_kept(kept.folder, KEY, 600) is None
    socket_path(kept.folder, KEY).unlink(missing_ok=True)
    kept.serve()
    kept.threads[0].join(120)
    assert not kept.threads[0].is_alive()
    kept.backend(never)


def test_a_process_whose_folder_is_removed_ends_and_does_not_make_it_again(kept: Kept) -> None:
    kept.serve()
    kept.backend(never, keep=0.1)._wire.close()
    shutil.rmtree(kept.folder)
    kept.wait_for_end()
    assert not kept.folder.exists()


def test_stop_waits_for_the_running_answer(kept: Kept) -> None:
    kept.serve()
    connection = kept.connect()
    (process,) = list_kept(kept.folder)
    assert process.pid == os.getpid()
    stopped: list[bool] = []
    stopping = Thread(target=lambda: stopped.append(stop_kept(process)))
    stopping.start()
    wait_until(lambda: find_kept(kept.folder, KEY, 600) is None)
    connection.wire.close()
    stopping.join(120)
    assert stopped == [True]
    kept.wait_for_end()


def test_progress_of_the_load_is_shown_and_its_error_is_that_of_the_call(kept: Kept) -> None:
    gate, seen = Cancel(), []

    def load(progress: ProgressSink) -> Backend:
        progress(LoadProgress("reading weights", 1, 2, "tensors"))
        gate.wait(120)
        raise NotFoundError("The file is broken.", "Download it again.")

    def show(progress: LoadProgress) -> None:
        seen.append(progress)
        if progress.total == 2:
            gate.set()

    kept.serve(load)
    with pytest.raises(NotFoundError, match="broken"):
        load_kept(kept.connect().wire, never, kept.said.append, show)
    assert LoadProgress("reading weights", 1, 2, "tensors") in seen
    kept.wait_for_end()


def test_a_process_that_fails_is_replaced_with_one_line(kept: Kept) -> None:
    def fail(_: ProgressSink) -> Backend:
        raise MemoryError

    kept.serve(fail)
    found = load_kept(kept.connect().wire, lambda _: demo_backend(), kept.said.append, ignore_progress)
    assert found is demo_backend()
    line = "warning: The process that keeps the model failed. The model is loaded for this call."
    assert kept.said == [line]


def impostor(path: Path, talk: Callable[[Wire], None]) -> None:
    """Another program that listens on the socket, for one connection."""
    listener = listen(path)

    def serve() -> None:
        connection, _ = listener.accept()
        talk(Wire(connection))
        connection.recv(1 << 16)
        connection.close()

    Thread(target=serve, daemon=True).start()


@pytest.mark.parametrize("reply", [{"engine": 1}, (1, 2), "x", {}, {"status": None}])
def test_a_program_that_speaks_otherwise_is_not_used(kept: Kept, reply: object) -> None:
    impostor(socket_path(kept.folder, KEY), lambda wire: wire.send(reply))
    with pytest.raises(KeptUnusable, match="another program"):
        find_kept(kept.folder, KEY, 600)


def test_a_program_that_says_nothing_is_not_used(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localgemma_cli.warm.client._FIRST_SECONDS", 0.2)
    monkeypatch.setattr("localgemma_cli.warm.control._ANSWER_SECONDS", 0.2)
    listener = listen(socket_path(kept.folder, KEY))
    with pytest.raises(KeptUnusable, match="does not answer"):
        find_kept(kept.folder, KEY, 600)
    (process,) = list_kept(kept.folder)
    assert process.status is None
    listener.close()
    assert find_kept(kept.folder, KEY, 600) is None  # nobody listens


def lines_of(kept: Kept, talk: Callable[[Wire], None]) -> list[Event]:
    """What a call gets from a process that says this after it was asked for an answer, and then ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    backend = KeptBackend(
        Wire(ours), BackendAbout("local", None, True, 1), lambda _: demo_backend(), kept.said.append
    )
    other = Wire(theirs)
    talk(other)
    theirs.shutdown(socket.SHUT_WR)
    return list(backend.stream(QUESTION, GREEDY, Cancel()))


def test_a_process_that_ends_before_its_first_word_is_replaced(kept: Kept) -> None:
    def talk(wire: Wire) -> None:
        wire.send({"begun": True})
        wire.send({"event": Reading(1, 2)})

    events = lines_of(kept, talk)
    assert "".join(texts(events)) == "".join(texts(list(demo_backend().stream(QUESTION, GREEDY, Cancel()))))
    line = "warning: The process that keeps the model has ended. The model is loaded for this call."
    assert kept.said == [line]


def test_a_process_that_ends_within_its_answer_leaves_what_came_and_an_error(kept: Kept) -> None:
    def talk(wire: Wire) -> None:
        wire.send({"begun": True})
        wire.send({"event": Delta("I am")})

    *events, end = lines_of(kept, talk)
    assert texts(events) == ["I am"]
    assert isinstance(end, Finished)
    assert end.finish_reason == "error"
    assert "The answer is incomplete." in str(end.error)
    assert kept.said == []
