"""Which model answers in a chat: it loads behind the prompt, and `/model` puts another in its place."""

import gc
from collections.abc import Callable, Sequence
from typing import Protocol

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.background_load import BackgroundLoad
from localgemma_cli.events import LoadProgress, ProgressSink


class Model(Protocol):
    """One that was planned; `model` is its id, `label` for the bar, `reasons` are why it runs as it does."""

    @property
    def label(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def reasons(self) -> Sequence[str]: ...

    def load(self, progress: ProgressSink) -> Backend: ...


class ModelSwitcher:
    """`choose` plans the model of a name; it may take its time, and raises LocalGemmaError."""

    def __init__(self, model: Model, choose: Callable[[str], Model]) -> None:
        self.model, self._choose = model, choose
        self.wrap: Callable[[Backend], Backend] = lambda backend: backend
        self.load = self._loading(model)
        self.switched = False
        self._before: tuple[Model, BackgroundLoad] | None = None

    def switch(self, name: str) -> None:
        """To another model, as soon as it is found; the one so far is let go of before that loads."""
        before = self._before = (self.model, self.load)
        self.switched = True

        def load(progress: ProgressSink) -> Backend:
            progress(LoadProgress(f"looking for {name}"))
            self.model = self._choose(name)
            before[1].let_go()
            gc.collect()  # modules of a model refer to each other
            return self.wrap(self.model.load(progress))

        self.load = BackgroundLoad(load)

    def go_back(self) -> bool:
        """To the model before the last `switch`, which failed; False where there was none."""
        if self._before is None:
            return False
        self.model, load = self._before
        self.load = self._loading(self.model) if load.gone else load
        self._before = None
        return True

    def _loading(self, model: Model) -> BackgroundLoad:
        return BackgroundLoad(lambda progress: self.wrap(model.load(progress)))
