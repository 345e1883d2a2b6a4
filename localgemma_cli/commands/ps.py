"""`localgemma ps`: the models that are kept loaded for later calls."""

from localgemma_cli.command_options import takes_options
from localgemma_cli.environment import standard_streams
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.options import Options
from localgemma_cli.render.json import write_line
from localgemma_cli.sanitize import one_line
from localgemma_cli.units import format_bytes
from localgemma_cli.warm.control import KeptProcess, list_kept
from localgemma_cli.warm.folder import KeptUnusable, kept_folder

_NOTHING = "No model is kept loaded. --keep-alive 10m keeps the model of a call."


def kept_processes() -> list[KeptProcess]:
    """Those of this user. LocalGemmaError if their folder cannot be trusted."""
    try:
        return list_kept(kept_folder())
    except KeptUnusable as error:
        raise LocalGemmaError(
            f"The process that keeps a model {error}.", "Make that folder private, or remove it."
        ) from error


@takes_options("ps")
def ps(options: Options) -> None:
    """List the models that --keep-alive keeps loaded, with their memory and their time left.

    Example: localgemma ps --json
    """
    streams, found = standard_streams(), kept_processes()
    if options.json:
        write_line(streams.stdout, {"kept": [_row(each) for each in found]})
        return
    if not found:
        streams.say(_NOTHING)
    for each in found:
        streams.show(one_line(_line(each)))


def _row(process: KeptProcess) -> dict[str, object]:
    if process.status is None:
        return {"pid": process.pid, "state": "hangs"}
    return {**vars(process.status), "pid": process.pid}


def _line(process: KeptProcess) -> str:
    """`demo  exact, cpu, bfloat16  0.3 GB  process 4711  ends in 9 min`."""
    status, pid = process.status, f"process {process.pid}"
    if status is None:
        return f"?  {pid}  does not answer; localgemma stop ends it"
    kind = status.dtype if status.quantization == "none" else status.quantization
    left = status.idle_seconds_left
    state = status.state if left is None else f"ends in {_format_seconds(left)}"
    plan = ", ".join((status.preset, status.device, kind))
    return f"{status.model}  {plan}  {format_bytes(status.memory_bytes)}  {pid}  {state}"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
