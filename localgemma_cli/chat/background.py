"""Loading behind the prompt: the model comes in a thread while the user types."""

from collections.abc import Callable
from threading import Event, Thread

from localgemma_cli.backends.base import Backend
from localgemma_cli.events import LoadProgress, ProgressSink

_LOOK_SECONDS = 0.1


def waited_for(load: Callable[[ProgressSink], Backend], progress: ProgressSink) -> Backend:
    """Loaded in another thread: what the libraries import and read there, no Ctrl-C breaks in the middle."""
    loading = BackgroundLoad(load)
    loading.start()
    while not loading.done.wait(_LOOK_SECONDS):
        progress(loading.progress)
    return loading.result()


class BackgroundLoad:
    """`progress` is the latest word from the load, `done` is set when it ended, well or not."""

    def __init__(self, load: Callable[[ProgressSink], Backend]) -> None:
        self.progress = LoadProgress("starting")
        self.done = Event()
        self._load = load
        self._backend: Backend | None = None
        self.error: BaseException | None = None
        # a daemon: leaving the chat does not wait for a download, which goes on where it stopped next time
        self._thread = Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Once the prompt is up, since the imports would hold it back; a second call does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def result(self) -> Backend:
        """The backend, once `done`; raises what loading raised."""
        if self.error is not None:
            raise self.error
        assert self._backend is not None  # `done` is set with one of the two
        return self._backend

    def _run(self) -> None:
        try:
            self._backend = self._load(self._report)
        except BaseException as error:  # whatever it is, the main thread raises it again
            self.error = error
        finally:
            self.done.set()

    def _report(self, progress: LoadProgress) -> None:
        self.progress = progress
