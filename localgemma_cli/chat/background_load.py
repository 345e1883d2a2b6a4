"""Loads a model in a thread, so that the user can type meanwhile and Ctrl-C works at once."""

from collections.abc import Callable
from threading import Event, Thread

from localgemma_cli.backends.base import Backend
from localgemma_cli.events import LoadProgress, ProgressSink

_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 0.3  # for a stopped load to remove its incomplete files


class _Stopped(BaseException):
    """Stops the loading thread; a BaseException, so that no library handles it."""


def load_and_wait(load: Callable[[ProgressSink], Backend], progress: ProgressSink) -> Backend:
    """Load in another thread, so that a Ctrl-C does not interrupt an import or a read halfway."""
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
    """One load; `progress` is the latest report; `done` is set when the load ends, also by an error."""

    def __init__(self, load: Callable[[ProgressSink], Backend]) -> None:
        self.progress = LoadProgress("starting")
        self.done = Event()
        self.released = False
        self._load = load
        self._backend: Backend | None = None
        self.error: BaseException | None = None
        self._stopping = Event()
        # a daemon: leaving the chat does not wait for a download, which the next start resumes
        self._thread = Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Start the load; once the prompt is up, since the imports would delay it. Later calls do nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Stop the load at its next progress report."""
        self._stopping.set()

    def release(self) -> None:
        """Stop the load if it is running, and drop the backend; blocks, so call it in a thread."""
        if self._thread.ident is not None:
            self.stop()
            self.done.wait()
        self.released, self._backend = True, None

    def result(self) -> Backend:
        """The backend once `done` is set; raises what loading raised."""
        if self.error is not None:
            raise self.error
        assert self._backend is not None  # once `done` is set, there is a backend or an error
        return self._backend

    def _run(self) -> None:
        try:
            self._backend = self._load(self._report)
        except BaseException as error:  # the main thread raises it again
            self.error = error
        finally:
            self.done.set()

    def _report(self, progress: LoadProgress) -> None:
        self.progress = progress
        if self._stopping.is_set():
            raise _Stopped
