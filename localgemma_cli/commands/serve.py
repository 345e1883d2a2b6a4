"""`localgemma serve`: an OpenAI-compatible server with one model."""

import os

import typer

from localgemma_cli.command_options import takes_options, value_places
from localgemma_cli.environment import standard_streams, torchrun_rank
from localgemma_cli.options import Options


@takes_options("serve")
def serve(ctx: typer.Context, options: Options) -> int:
    """Serve a model to other programs over OpenAI's API, until Ctrl-C.

    Example: localgemma serve -m 2b --port 4366
    """
    rank = torchrun_rank(os.environ)
    if rank is not None and rank.index > 0:
        from localgemma_cli.backends.pytorch.tensor_parallel import follow

        return follow()
    from localgemma_cli.serve.serve_run import ServeRun

    return ServeRun(standard_streams(), options, value_places(ctx), rank.count if rank else 1).run()
