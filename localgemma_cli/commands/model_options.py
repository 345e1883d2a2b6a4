"""From the options of a command to a source and its plan."""

from dataclasses import dataclass, replace
from functools import cached_property

from localgemma_cli.models.own_models import AUTO, OwnModel, check_template
from localgemma_cli.models.resolve import Source, resolve, resolve_adapted, resolve_assistant
from localgemma_cli.planning.hardware import Hardware, parse_size, parse_sizes, probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, default_model, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.types import ASSISTANTS


@dataclass(frozen=True)
class Choice:
    """What the user said about the model and how it runs; None where nothing was said."""

    model: str | None = None
    adapter: str | None = None
    preset: str | None = None
    revision: str | None = None
    offline: bool = False
    force: bool = False
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    compile: bool | None = None
    assistant: str | None = None
    context: int | None = None
    device_memory: str | None = None
    host_memory: str | None = None
    processes: int = 1

    @cached_property
    def draft(self) -> Source | None:
        """The model that --assistant names, where that is no other way to guess."""
        if self.assistant is None or self.assistant in ASSISTANTS:
            return None
        return resolve_assistant(self.assistant, offline=self.offline)

    def overrides(self) -> Overrides:
        return Overrides(
            dtype=self.dtype,
            quantization=self.quantization,
            attention=self.attention,
            compile=self.compile,
            assistant=None if self.draft else self.assistant,
            draft=self.draft.facts if self.draft else None,
            context=self.context,
            device=self.device,
            device_memory=parse_sizes(self.device_memory) if self.device_memory else None,
            host_memory=parse_size(self.host_memory) if self.host_memory else None,
            processes=self.processes,
        )


def template_for(template: str | None, own: OwnModel | None) -> str:
    """`--template`, else what `models.toml` says; a UsageError for what is neither a form nor a file."""
    return check_template(template or (own and own.template) or AUTO)


def source_of(choice: Choice, hardware: Hardware) -> Source:
    """The model that was asked for, else the larger default that fits."""
    if choice.adapter is not None:
        return resolve_adapted(
            choice.model,
            choice.adapter,
            revision=choice.revision,
            offline=choice.offline,
            force=choice.force,
        )
    if choice.model is not None:
        return resolve(choice.model, revision=choice.revision, offline=choice.offline, force=choice.force)
    facts = default_model(hardware, choice.overrides(), load_presets())
    return Source(facts, None, choice.revision, choice.offline)


def planned(choice: Choice, hardware: Hardware | None = None) -> tuple[Source, LoadPlan]:
    """For this machine, or for the `hardware` that a what-if describes."""
    hardware = hardware or probe(choice.device)
    source = replace(source_of(choice, hardware), assistant=choice.draft)
    return source, make_plan(source.facts, choice.preset, hardware, choice.overrides(), load_presets())
