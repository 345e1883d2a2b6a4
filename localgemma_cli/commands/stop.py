"""`localgemma stop`: end the processes that keep models loaded."""

from typing import Annotated

import typer

from localgemma_cli.commands.ps import kept_processes
from localgemma_cli.environment import standard_streams
from localgemma_cli.errors import ExitCode, NotFoundError
from localgemma_cli.warm.control import stop_kept


def stop(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Free only these models, as `localgemma ps` names them."),
    ] = None,
) -> int:
    """Free the models that --keep-alive keeps loaded; running answers are completed first.

    Example: localgemma stop demo
    """
    streams, found = standard_streams(), kept_processes()
    names = {each.status.model for each in found if each.status}
    for model in models or ():
        if model not in names:
            raise NotFoundError(f"{model} is not kept loaded.", "List the kept models with: localgemma ps")
    code = ExitCode.OK
    for each in found:
        name = each.status.model if each.status else f"process {each.pid}"
        if models and name not in models:
            continue
        if stop_kept(each):
            streams.say(f"Freed {name}.")
        else:
            streams.say(f"{name} is in use; it is freed after the running answer.")
            code = ExitCode.FAILURE
    if not found:
        streams.say("No model is kept loaded.")
    return code
