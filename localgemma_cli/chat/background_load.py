"""Loading behind the prompt: the model comes in a thread while the user types."""

from collections.abc import Callable
from threading import Event, Thread

from localgemma_cli.backends.base import Backend
from localgemma_cli.events import LoadProgress, ProgressSink

_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 0.3  # for a load that is to stop: half a copy of the weights is removed


class _Stopped(BaseException):
    """In the thread that loads; no library takes it for an error that it could do something about."""


def load_and_wait(load: Callable[[ProgressSink], Backend], progress: ProgressSink) -> Backend:
    """Loaded in another thread: what the libraries import and read there, no Ctrl-C breaks in the middle."""
    loading = BackgroundLoad(load)
    loading.start()
    try:
        while not loading.done.wait(_LOOK_SECONDS):
            progress(loading.progress)
    except KeyboardInterrupt:
        loading.stop()
        loading.done.wait(_GRACE_SECONDS)
        raise
    return loading.result()


class BackgroundLoad:
    """`progress` is the latest word from the load, `done` is set when it ended, well or not."""

    def __init__(self, load: Callable[[ProgressSink], Backend]) -> None:
        self.progress = LoadProgress("starting")
        self.done = Event()
        self.gone = False
        self._load = load
        self._backend: Backend | None = None
        self.error: BaseException | None = None
        self._stopping = Event()
        # a daemon: leaving the chat does not wait for a download, which goes on where it stopped next time
        self._thread = Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Once the prompt is up, since the imports would hold it back; a second call does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """At its next word of progress."""
        self._stopping.set()

    def let_go(self) -> None:
        """Free what was loaded, or is being loaded, as soon as nothing uses it; to be called in a thread."""
        if self._thread.ident is not None:
            self.stop()
            self.done.wait()
        self.gone, self._backend = True, None

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
        if self._stopping.is_set():
            raise _Stopped
