"""What needs the user's yes: a large download, and what is removed for good."""

from typing import TYPE_CHECKING

from localgemma_cli.environment import Streams
from localgemma_cli.errors import NotFoundError
from localgemma_cli.units import format_bytes

if TYPE_CHECKING:
    from localgemma_cli.models.resolve import Source


def can_ask(streams: Streams) -> bool:
    """Whether a question would be seen, and its answer typed by a person."""
    return streams.stdin.isatty() and streams.stderr.isatty()


def agreed(streams: Streams, question: str) -> bool:
    """Only y or yes is a yes, so Enter and Ctrl-D are not."""
    return streams.ask(f"{question} [y/N]").lower() in ("y", "yes")


def agree_to_download(source: "Source", streams: Streams, *, named: bool, yes: bool) -> None:
    """Raise NotFoundError where what has to be downloaded was neither asked for nor agreed to.

    `named`: the user said which model. Before the chat's prompt is up, since loading goes on behind it.
    """
    from localgemma_cli.models.fetch import CONFIRM_ABOVE, list_downloads, missing_from_disk

    ask = can_ask(streams)
    if yes or (named and not ask) or not (missing := missing_from_disk(source)):
        return
    from localgemma_cli.models.hub.cache import offline_by

    if offline_by(source.offline):  # the load says that it is not on disk
        return
    model_id = missing[0][0].id
    revision = f" --revision {source.revision}" if source.revision else ""
    how = f"Download it first: localgemma models pull {source.facts.name}{revision}"
    if not ask:
        raise NotFoundError(
            f"{model_id} is not on disk, and the default model is not downloaded unasked.",
            f"{how}. Or name a model with -m, or add --yes.",
        )
    wanted = list_downloads(source)
    total = sum(each.size for each in wanted)
    if total <= CONFIRM_ABOVE:
        return
    for each in wanted:
        streams.say(f"{each.model_id} is not on disk: {format_bytes(each.size)}, licence: {each.licence}.")
    if not agreed(streams, f"Download {format_bytes(total)} to {_destination()}?"):
        raise NotFoundError(f"{model_id} was not downloaded.", f"{how}, or chat with -m demo.")


def refuse_unasked_download(source: "Source", how: str) -> None:
    """NotFoundError for a large one, where no question can be asked; `how` says what is a yes."""
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
