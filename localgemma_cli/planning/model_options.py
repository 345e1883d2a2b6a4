"""From the options of a command to a model and its plan."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import AUTO, OwnModel, check_template
from localgemma_cli.models.resolve import Source, resolve, resolve_adapted, resolve_assistant
from localgemma_cli.planning.gguf_settings import llamacpp_has_gpu
from localgemma_cli.planning.hardware import Hardware, parse_size, parse_sizes, probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, default_model, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.types import ASSISTANTS

if TYPE_CHECKING:  # it imports Typer
    from localgemma_cli.options import Options


_NO_PLACES: Mapping[str, str] = MappingProxyType({})


def make_overrides(
    options: "Options",
    draft: Source | None = None,
    processes: int = 1,
    places: Mapping[str, str] = _NO_PLACES,
) -> Overrides:
    """What the options set in a plan; `draft` is the model that --assistant names, if it names one.

    `places`: where each option's value comes from; by default the command line.
    """
    values = {
        **options.values_for(Overrides),
        "assistant": None if draft else options.assistant,
        "device_memory": parse_sizes(options.device_memory) if options.device_memory else None,
        "host_memory": parse_size(options.host_memory) if options.host_memory else None,
    }
    return Overrides(
        **values,
        draft=draft.facts if draft else None,
        processes=processes,
        defaults=frozenset(name for name, place in places.items() if place != "COMMANDLINE"),
    )


def resolve_draft(options: "Options") -> Source | None:
    """The small model that --assistant names; None for `lookup`, `none` or no --assistant."""
    if options.assistant is None or options.assistant in ASSISTANTS:
        return None
    return resolve_assistant(options.assistant, offline=options.offline)


def choose_template(template: str | None, own: OwnModel | None) -> str:
    """--template, else the template in `models.toml`; UsageError if it is neither a format nor a file."""
    return check_template(template or (own and own.template) or AUTO)


def find_source(options: "Options", hardware: Hardware, overrides: Overrides | None = None) -> Source:
    """The model that --model or --adapter names, else the larger default that fits."""
    revision, offline, force = options.revision, options.offline, options.force
    if options.adapter is not None:
        return resolve_adapted(
            options.model, options.adapter, revision=revision, offline=offline, force=force
        )
    if options.model is not None:
        return resolve(options.model, revision=revision, offline=offline, force=force)
    facts = default_model(hardware, overrides or make_overrides(options), load_presets())
    return Source(facts, None, revision, offline)


def plan_model(
    options: "Options",
    hardware: Hardware | None = None,
    processes: int = 1,
    places: Mapping[str, str] = _NO_PLACES,
) -> tuple[Source, LoadPlan]:
    """The model and its plan, on this machine or on the `hardware` of a what-if; `places` as above."""
    probed = hardware is None
    hardware = hardware or probe(options.device)
    draft = resolve_draft(options)
    overrides = make_overrides(options, draft, processes, places)
    source = replace(find_source(options, hardware, overrides), assistant=draft)
    plan = make_plan(source.facts, options.preset, hardware, overrides, load_presets())
    if probed and plan.quantization == "gguf" and plan.device != "cpu" and not llamacpp_has_gpu():
        if options.device is not None:
            raise UsageError(
                f"--device {options.device} needs an xllamacpp build with GPU support for GGUF files.",
                "Remove --device, or install such a build of xllamacpp.",
            )
        plan = make_plan(source.facts, options.preset, probe("cpu"), overrides, load_presets())
    return source, plan
