"""The rows of `localgemma models list --json`: models, and what of them is on disk."""

import os
from typing import TYPE_CHECKING

from localgemma_cli.environment import expand_home
from localgemma_cli.models.catalog import ModelFacts, catalogue, lookup
from localgemma_cli.models.fetch import is_on_disk
from localgemma_cli.models.gguf_names import gguf_name, parse_gguf_name
from localgemma_cli.models.hub.gguf_cache import cached_gguf, delete_gguf, list_cached_ggufs
from localgemma_cli.models.model_names import models_on_disk
from localgemma_cli.models.own_models import OwnModel, own_models
from localgemma_cli.planning.memory import WeightFormat, weights_bytes

if TYPE_CHECKING:  # `--help` does not need it
    from localgemma_cli.backends.pytorch.loading.quantized_cache import QuantizedCopy


def catalogue_row(facts: ModelFacts) -> dict[str, object]:
    """A built-in model."""
    return {
        "name": facts.name,
        "id": facts.id,
        "parameters": facts.architecture.parameters,
        "weights_bytes": weights_bytes(facts.architecture, _stored_as(facts)),
        "licence": facts.licence,
        "gated": facts.gated,
        "form": facts.form,
        "on_disk": facts.bundled or is_on_disk(facts),
        "disk_bytes": 0 if facts.bundled else bytes_on_disk(facts.id),
        "summary": facts.summary,
    }


def _stored_as(facts: ModelFacts) -> WeightFormat:
    stored = facts.stored
    return (
        WeightFormat("float16", stored.kind, stored.nested, stored_bytes=stored.bytes)
        if stored
        else WeightFormat("bfloat16")
    )


def own_model_row(own: OwnModel) -> dict[str, object]:
    """A model of models.toml."""
    parts = ids_behind(own.name)
    return {
        "name": own.name,
        "id": parts[0] if own.repository else None,
        "revision": own.revision,
        "template": own.template,
        "adapter": own.adapter,
        "endpoint": own.endpoint,
        "system": own.system,
        "sampling": dict(own.sampling),
        "on_disk": bool(parts) and all(os.path.isdir(expand_home(each)) or _cached(each) for each in parts),
        "disk_bytes": sum(map(bytes_on_disk, parts)),
    }


def other_rows() -> list[dict[str, object]]:
    """Downloads that neither the catalogue nor models.toml names; each GGUF model by itself."""
    listed = {facts.id for facts in catalogue()}.union(*(ids_behind(name) for name in own_models()))
    named = [name for each in listed if (name := parse_gguf_name(each))]
    listed.update(cached.name.id for name in named if (cached := cached_gguf(name)))
    rows = [row for each in models_on_disk() if each not in listed for row in _repository_rows(each)]
    return [row for row in rows if row["id"] not in listed]


def _repository_rows(repository: str) -> list[dict[str, object]]:
    """Each GGUF model of a repository on disk, and the rest of it."""
    ggufs = [(each.name.id, each.model.size) for each in list_cached_ggufs(repository)]
    rest = bytes_on_disk(repository) - sum(size for _, size in ggufs)
    others = (
        [{"id": repository, "on_disk": _has_snapshot(repository), "disk_bytes": rest}] if rest > 0 else []
    )
    return [*({"id": id, "on_disk": True, "disk_bytes": size} for id, size in ggufs), *others]


def ids_behind(name: str) -> list[str]:
    """The hub ids or folders behind a name: a model's, and its adapter's."""
    own = own_models().get(name)
    parts = [each for each in (own.repository, own.adapter) if each] if own else [name]
    return [facts.id if (facts := lookup(each)) else each for each in parts]


def bytes_on_disk(model_id: str) -> int:
    """Bytes on disk of a repository, or of one GGUF model in it."""
    from localgemma_cli.models.hub.cache import downloaded_bytes

    if name := parse_gguf_name(model_id):
        cached = cached_gguf(name)
        return cached.model.size if cached else 0
    return downloaded_bytes(model_id)


def delete_download(model_id: str) -> None:
    """Delete a repository in every revision, or one GGUF model of it."""
    from localgemma_cli.models.hub.cache import delete_model

    name = parse_gguf_name(model_id)
    cached = cached_gguf(name) if name else None
    if cached:
        delete_gguf(cached)
    else:
        delete_model(model_id)


def kept_copy_row(copy: "QuantizedCopy") -> dict[str, object]:
    """A 4-bit copy that this program made."""
    return {
        "model": copy.model,
        "source": copy.source,
        "bytes": copy.size,
        "form": dict(copy.form),
        "folder": str(copy.folder),
        "problem": copy.problem or None,
    }


def _cached(model_id: str) -> bool:
    return cached_gguf(gguf_name(model_id)) is not None or _has_snapshot(model_id)


def _has_snapshot(model_id: str) -> bool:
    from localgemma_cli.models.hub.cache import cached_snapshot

    return cached_snapshot(model_id) is not None
