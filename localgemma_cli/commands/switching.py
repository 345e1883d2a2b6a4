"""`/model NAME` in a chat: another model, planned as the first one was."""

from collections.abc import Callable
from dataclasses import dataclass, field

from localgemma_cli.chat.engine import ChatEngine, LocalEngine
from localgemma_cli.commands.consent import refuse_unasked_download
from localgemma_cli.models.own_models import own_model


@dataclass
class Switching:
    """`local` and `remote` make a target as the options say; `endpoint` is the server that answers so far."""

    local: Callable[..., ChatEngine]
    remote: Callable[..., ChatEngine]
    endpoint: str | None
    agreed: bool  # to any download
    _told: set[str] = field(default_factory=set)  # names whose downloads were announced

    def target(self, name: str) -> ChatEngine:
        """LocalGemmaError where there is no such model, or it is a download that nobody agreed to yet."""
        own = own_model(name)
        if own and own.endpoint:
            return self.remote(own.endpoint, model=own.repository)
        if self.endpoint is not None:
            return self.remote(self.endpoint, model=name)
        target = self.local(own, model=name)
        if isinstance(target, LocalEngine) and not self.agreed and name not in self._told:
            self._told.add(name)
            refuse_unasked_download(target.source, f"/model {name} again downloads it.")
        return target
