"""What answers in a chat: a model on this machine, or a server."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # each engine imports only what it needs
    from pathlib import Path

    from localgemma_cli.backends.base import Backend
    from localgemma_cli.backends.http.endpoint import Endpoint
    from localgemma_cli.events import ProgressSink
    from localgemma_cli.models.resolve import Source
    from localgemma_cli.planning.plan import LoadPlan
    from localgemma_cli.render.json import RunInfo


class ChatEngine(Protocol):
    """A model or a server, and how a chat describes it.

    `label` is for the toolbar, `introduction` for the first line; `warnings` and `reasons` for stderr.
    """

    @property
    def label(self) -> str: ...

    @property
    def introduction(self) -> str: ...

    @property
    def model(self) -> str:
        """The model's id, or the server's name for it."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def reasons(self) -> tuple[str, ...]: ...

    def load(self, progress: "ProgressSink") -> "Backend": ...

    def run(self, load_seconds: float) -> "RunInfo":
        """What `--json` reports about it once it is loaded."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """What is loaded: a model's folder or GGUF file, the folders of its adapter and of a draft model."""

    folder: "Path"
    adapter: "Path | None"
    draft: "Path | None"


@dataclass(frozen=True)
class LocalEngine:
    """A model on this machine; with `keep`, another process loads it and keeps it for later calls."""

    source: "Source"
    plan: "LoadPlan"
    template: str
    keep: "Keeper | None" = None

    @property
    def model(self) -> str:
        return self.plan.model.id

    @property
    def label(self) -> str:
        return f"{self.plan.model.name} · {self.plan.preset}"

    @property
    def introduction(self) -> str:
        facts = self.plan.model
        who = facts.name if facts.id == facts.name else f"{facts.name} ({facts.id})"
        return f"Model {who}, preset {self.plan.preset}, on {self.plan.device}."

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.plan.warnings

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(f"plan: {reason}" for reason in self.plan.reasons)

    def load(self, progress: "ProgressSink") -> "Backend":
        files = self._fetch(progress)
        if self.keep is not None:
            return self.keep.load(self, files, progress)
        return self.load_files(files, progress)

    def _fetch(self, progress: "ProgressSink") -> ModelFiles:
        from localgemma_cli.events import LoadProgress
        from localgemma_cli.models.fetch import CONFIRM_ABOVE, fetch_adapter, fetch_assistant, fetch_model

        if self.source.folder is None:
            progress(LoadProgress("checking the hub"))
        # A first download was already confirmed; a large update of an existing copy needs its own consent.
        return ModelFiles(
            fetch_model(self.source, progress, CONFIRM_ABOVE),
            fetch_adapter(self.source, progress, CONFIRM_ABOVE),
            fetch_assistant(self.source, progress, CONFIRM_ABOVE),
        )

    def load_files(self, files: ModelFiles, progress: "ProgressSink") -> "Backend":
        """Load into this process, or into the one of llama.cpp."""
        if self.plan.quantization == "gguf":
            from localgemma_cli.backends.llamacpp.backend import load_backend as load_gguf

            return load_gguf(self.plan, files.folder, progress, self.template)
        from localgemma_cli.backends.pytorch.lean_import import import_frameworks

        import_frameworks(progress, self.plan.device)
        from localgemma_cli.backends.pytorch.backend import LoadOptions, load_backend

        return load_backend(
            self.plan, files.folder, progress, LoadOptions(self.template, files.adapter, files.draft)
        )

    def run(self, load_seconds: float) -> "RunInfo":
        from localgemma_cli.render.json import RunInfo

        return RunInfo(self.plan.model.id, self.plan.preset, "local", load_seconds, self.plan.to_dict())


class Keeper(Protocol):
    """Loads a model in another process, which keeps it for later calls."""

    def load(self, engine: LocalEngine, files: ModelFiles, progress: "ProgressSink") -> "Backend": ...


class HttpEngine:
    """A server; `say` prints what it does not support, `detail` what it is."""

    def __init__(
        self, endpoint: "Endpoint", say: Callable[[str], None], detail: Callable[[str], None]
    ) -> None:
        self._endpoint, self._say, self._detail = endpoint, say, detail
        self._model = endpoint.model or ""
        self.warnings: tuple[str, ...] = ()
        self.reasons: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return self._model or self._endpoint.host

    @property
    def label(self) -> str:
        return " · ".join(part for part in (self._model, self._endpoint.host) if part)

    @property
    def introduction(self) -> str:
        return f"{f'Model {self._model}' if self._model else 'A model'} on the server {self._endpoint.host}."

    def load(self, progress: "ProgressSink") -> "Backend":
        from localgemma_cli.backends.http.backend import connect
        from localgemma_cli.events import LoadProgress

        progress(LoadProgress("connecting"))
        backend = connect(self._endpoint, self._say, self._detail)
        self._model = backend.model
        return backend

    def run(self, load_seconds: float) -> "RunInfo":
        from localgemma_cli.render.json import RunInfo

        return RunInfo(self._model, None, "remote", load_seconds, None)
