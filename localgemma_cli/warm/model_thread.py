"""The thread that loads a model, and then answers one request at a time."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event as Cancel
from threading import Thread
from typing import TYPE_CHECKING, Any

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.warm.about import BackendAbout

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend

METHODS = ("count", "prompt", "recognizes", "score")  # of `Backend`, which a client may call
Reply = Mapping[str, object]


@dataclass(frozen=True)
class Job:
    """One request for the model; the replies are put into `out`."""

    request: Mapping[str, Any]
    cancel: Cancel
    out: "SimpleQueue[Reply | None]"


class ModelThread:
    """`loaded` is set when the load ends: then there is a `backend`, or the reply of its `failure`."""

    def __init__(self, load: "Callable[[ProgressSink], Backend]") -> None:
        self._load = load
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.progress: LoadProgress | None = LoadProgress("starting")
        self.backend: Backend | None = None
        self.failure: Reply | None = None
        self.loaded = Cancel()
        self._thread = Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self.backend = self._load(self._report)
        except BaseException as error:  # whatever a load raises
            self.failure = _failure(error)
        self.progress = None
        self.loaded.set()
        while True:
            job = self.jobs.get()
            if self.backend is not None:
                self._answer(self.backend, job)

    def _report(self, progress: LoadProgress) -> None:
        self.progress = progress

    def _answer(self, backend: "Backend", job: Job) -> None:
        request = job.request
        try:
            if request["do"] == "stream":
                job.out.put({"begun": True})
                for event in backend.stream(request["messages"], request["sampling"], job.cancel):
                    job.out.put({"event": event})
            elif request["name"] in METHODS:
                job.out.put({"result": getattr(backend, request["name"])(*request["arguments"])})
        except BaseException as error:  # the one who asked gets it; the model stays
            job.out.put(_failure(error))


def _failure(error: BaseException) -> Reply:
    if isinstance(error, LocalGemmaError):
        return {"error": error}
    return {"broken": "".join(traceback.format_exception(error))}


def about_backend(backend: "Backend") -> BackendAbout:
    return BackendAbout(backend.name, backend.note, backend.continues, backend.context_length)
