"""Which model answers in a chat: it loads while the prompt is up, and `/model` replaces it."""

import gc
from collections.abc import Callable

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.background_load import BackgroundLoad
from localgemma_cli.chat.engine import ChatEngine
from localgemma_cli.events import LoadProgress, ProgressSink


class ModelSwitcher:
    """The present engine and its load.

    `choose` plans the engine of a model's name; it may be slow, and raises LocalGemmaError.
    """

    def __init__(self, engine: ChatEngine, choose: Callable[[str], ChatEngine]) -> None:
        self.engine, self._choose = engine, choose
        self.wrap: Callable[[Backend], Backend] = lambda backend: backend
        self.load = self._start_over(engine)
        self.switched = False
        self._before: tuple[ChatEngine, BackgroundLoad] | None = None

    def switch(self, name: str) -> None:
        """Load the model of that name; the present one is freed once the new one is found."""
        before = self._before = (self.engine, self.load)
        self.switched = True

        def load(progress: ProgressSink) -> Backend:
            progress(LoadProgress(f"looking for {name}"))
            self.engine = self._choose(name)
            before[1].release()
            gc.collect()  # a model's modules reference each other
            return self.wrap(self.engine.load(progress))

        self.load = BackgroundLoad(load)

    def go_back(self) -> bool:
        """Return to the model before a failed `switch`; False if there was none."""
        if self._before is None:
            return False
        self.engine, load = self._before
        self.load = self._start_over(self.engine) if load.released else load
        self._before = None
        return True

    def _start_over(self, engine: ChatEngine) -> BackgroundLoad:
        return BackgroundLoad(lambda progress: self.wrap(engine.load(progress)))
