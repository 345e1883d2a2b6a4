"""`localgemma serve`: an OpenAI-compatible server with one model."""

import typer

from localgemma_cli.command_options import takes_options, value_places
from localgemma_cli.commands.torchrun import count_processes, follow_torchrun
from localgemma_cli.environment import standard_streams
from localgemma_cli.options import Options


@takes_options("serve")
def serve(ctx: typer.Context, options: Options) -> int:
    """Serve a model to other programs over OpenAI's API, until Ctrl-C.

    Example: localgemma serve -m 2b --port 4366
    """
    if (code := follow_torchrun()) is not None:
        return code
    from localgemma_cli.serve.serve_run import ServeRun

    return ServeRun(standard_streams(), options, value_places(ctx), count_processes()).run()
