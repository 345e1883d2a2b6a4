"""Ask the user before a large download."""

from typing import TYPE_CHECKING

from localgemma_cli.environment import Streams
from localgemma_cli.errors import NotFoundError
from localgemma_cli.units import format_bytes

if TYPE_CHECKING:
    from localgemma_cli.models.resolve import Source


def agree_to_download(source: "Source", streams: Streams, *, named: bool, yes: bool) -> None:
    """Ask before a large download; NotFoundError if the user declines or cannot be asked.

    `named`: the user named the model, which is consent where nobody can be asked. Called before the chat's
    prompt appears, because loading runs behind that.
    """
    from localgemma_cli.models.fetch import CONFIRM_ABOVE, list_downloads, missing_from_disk

    can_ask = streams.can_ask()
    if yes or (named and not can_ask) or not (missing := missing_from_disk(source)):
        return
    from localgemma_cli.models.hub.cache import offline_by

    if offline_by(source.offline):  # the load reports what is missing
        return
    model_id = missing[0][0].id
    revision = f" --revision {source.revision}" if source.revision else ""
    how = f"Download it first: localgemma models pull {source.facts.name}{revision}"
    if not can_ask:
        raise NotFoundError(
            f"{model_id} is not on disk, and a script must confirm the download of the default model.",
            f"{how}. Or name a model with -m, or add --yes.",
        )
    wanted = list_downloads(source)
    total = sum(each.size for each in wanted)
    if total <= CONFIRM_ABOVE:
        return
    if source.note:
        streams.say(source.note)
    for each in wanted:
        streams.say(f"{each.model_id} is not on disk: {format_bytes(each.size)}, licence: {each.licence}.")
    if not streams.confirm(f"Download {format_bytes(total)} to {_destination()}?"):
        raise NotFoundError(f"Download of {model_id} declined.", f"{how}, or chat with -m demo.")


def refuse_unasked_download(source: "Source", how: str) -> None:
    """Raise NotFoundError for a large download; the hint `how` says how a script agrees to it."""
    from localgemma_cli.models.fetch import CONFIRM_ABOVE, list_downloads, missing_from_disk
    from localgemma_cli.models.hub.cache import offline_by

    if not missing_from_disk(source) or offline_by(source.offline):
        return
    wanted = list_downloads(source)
    total = sum(each.size for each in wanted)
    if total > CONFIRM_ABOVE:
        licences = ", ".join(dict.fromkeys(each.licence for each in wanted))
        where = f"{format_bytes(total)} to {_destination()}, licence: {licences}"
        raise NotFoundError(f"{wanted[0].model_id} is not on disk: {where}.", how)


def _destination() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE
