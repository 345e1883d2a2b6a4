"""Choose what answers: a server or a model on this machine, at the start and for `/model NAME`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from localgemma_cli.chat.engine import ChatEngine, HttpEngine, LocalEngine
from localgemma_cli.command_options import PLACES, SPECS
from localgemma_cli.errors import DoesNotFitError, UsageError
from localgemma_cli.models.own_models import OwnModel, own_model

if TYPE_CHECKING:
    from localgemma_cli.options import Options


class EngineChoice:
    """Chooses an engine by the options.

    `places`: where each option's value comes from. `processes`: how many share a local model's layers.
    `keep_seconds`: how long the first engine's model is kept for later calls.
    """

    def __init__(
        self,
        options: "Options",
        places: Mapping[str, str],
        say: Callable[[str], None],
        processes: int = 1,
        keep_seconds: float = 0,
    ) -> None:
        self._options, self._places, self._say, self._processes = options, places, say, processes
        self._keep_seconds = keep_seconds
        self._endpoint: str | None = None  # of the server that answers
        self._announced: set[str] = set()  # models whose download `/model` has announced

    def first(self) -> ChatEngine:
        """The engine that the options name; UsageError for options that its kind does not have."""
        options, places = self._options, self._places
        own = own_model(options.model)
        if own and own.endpoint and not options.endpoint:
            options = replace(options, endpoint=own.endpoint, model=own.repository)
            places = {**places, "model": "COMMANDLINE"}
        if wants_endpoint(options.endpoint, places):
            self._endpoint = str(options.endpoint)
            return self._http(self._endpoint, server_model(options.model, places))
        if options.resumes and options.model is None and options.adapter is None:  # an adapter names its base
            options = replace(options, model=_model_of_session(options.session))
        return self._kept(options, own) if self._keep_seconds else self._local(options, own)

    def switch(self, name: str) -> ChatEngine:
        """The engine of `/model NAME`; LocalGemmaError for an unknown or unconfirmed model."""
        own = own_model(name)
        if own and own.endpoint:
            return self._http(own.endpoint, own.repository)
        if self._endpoint is not None:
            return self._http(self._endpoint, name)
        options = replace(self._options, model=name, adapter=None, revision=None, assistant=None)
        engine = self._local(options, own)
        if not options.yes and name not in self._announced:
            from localgemma_cli.models.hub.consent import refuse_unasked_download

            self._announced.add(name)
            refuse_unasked_download(engine.source, f"To download it, repeat: /model {name}")
        return engine

    def _kept(self, options: "Options", own: OwnModel | None) -> ChatEngine:
        """The kept model that these options name, else a model that is kept once it is loaded."""
        from localgemma_cli.warm.client import KeptEngine, describe_loss, find_kept
        from localgemma_cli.warm.folder import KeptUnusable, kept_folder
        from localgemma_cli.warm.key import kept_key

        notice = _discard if options.quiet else self._say
        folder, key = kept_folder(), kept_key(options, self._places, os.environ)
        try:
            found = find_kept(folder, key, self._keep_seconds)
        except KeptUnusable as error:
            notice(describe_loss(error))
            return self._local(options, own)
        if found is not None:
            return KeptEngine(found, lambda progress: self._local(options, own).load(progress), notice)
        from localgemma_cli.warm.start import KeepRequest

        request = KeepRequest(folder, key, self._keep_seconds, notice)
        return replace(self._local(options, own), keep=request)

    def _local(self, options: "Options", own: OwnModel | None) -> LocalEngine:
        from localgemma_cli.planning.model_options import choose_template, plan_model
        from localgemma_cli.planning.plan import require_fits

        template = choose_template(options.template, own)
        source, plan = plan_model(options, processes=self._processes, places=self._places)
        try:
            require_fits(plan)
        except DoesNotFitError as error:
            from localgemma_cli.warm.control import kept_bytes

            missing = plan.memory.total_bytes - plan.memory.available_bytes
            if not 0 < missing <= kept_bytes():
                raise
            hint = f"Free the models that --keep-alive keeps: localgemma stop. Or: {error.hint}"
            raise DoesNotFitError(error.message, hint) from error
        return LocalEngine(source, plan, template)

    def _http(self, url: str, model: str | None) -> HttpEngine:
        from localgemma_cli.backends.http.endpoint import parse_endpoint

        options = self._options
        dialect, timeout = options.endpoint_dialect, options.endpoint_timeout
        server = parse_endpoint(url, dialect=dialect, model=model, timeout=timeout)
        notice = _discard if options.quiet else self._say
        return HttpEngine(server, notice, self._say if options.verbose else _discard)


def wants_endpoint(url: str | None, places: Mapping[str, str]) -> bool:
    """Whether a server answers; UsageError if the command line has an option for local models too.

    A config file may set such options beside an endpoint.
    """
    if url in (None, "", "none"):
        return False
    for name, spec in SPECS.items():
        if spec.local_only and places.get(name) == "COMMANDLINE":
            raise UsageError(
                f"--{spec.key} applies only to a model on this machine, not to a server.",
                f"Remove --{spec.key}, or use --endpoint none.",
            )
    return True


def server_model(model: str | None, places: Mapping[str, str]) -> str | None:
    """The model's name on the server; None if it comes from a weaker place, where it names a local model."""
    weaker = PLACES.index(places.get("model", "DEFAULT")) < PLACES.index(places.get("endpoint", "DEFAULT"))
    return None if weaker else model


def _model_of_session(session: str | None) -> str | None:
    """The built-in model of the last answer in the conversation of that name, or in the latest one."""
    from localgemma_cli.models.catalog import catalogue
    from localgemma_cli.sessions.opening import open_store
    from localgemma_cli.sessions.store import default_path

    if not default_path().exists():
        return None
    store = open_store()
    try:
        id = store.latest() if session is None else store.named(session)
        answered = store.last_model(id) if id is not None else None
    finally:
        store.close()
    return next((facts.name for facts in catalogue() if facts.id == answered), None)


def _discard(_: str) -> None:
    pass
