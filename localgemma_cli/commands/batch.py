"""`localgemma batch`: an answer for every row of a file or a pipe."""

from typing import Annotated

import typer

from localgemma_cli.command_options import takes_options, value_places
from localgemma_cli.commands.torchrun import count_processes, follow_torchrun
from localgemma_cli.environment import standard_streams
from localgemma_cli.options import Options


@takes_options("batch")
def batch(
    ctx: typer.Context,
    options: Options,
    input: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="Read rows from this file of JSON Lines or CSV, or from standard input for -."
        ),
    ],
) -> int:
    """Answer every row of a file or a pipe, and write one JSON object per row, in order.

    A row has a prompt or messages, and may have an id, a system text and sampling parameters; with
    --prompt-template it has any fields. A run that was stopped continues with --resume.

    \b
    Examples:
      localgemma batch -m 2b questions.jsonl -o answers.jsonl
      localgemma batch mails.csv -o out.jsonl --prompt-template "Summarize: {body}"
    """
    if (code := follow_torchrun()) is not None:
        return code
    from localgemma_cli.batch.batch_run import BatchRun

    BatchRun(standard_streams(), options, value_places(ctx), count_processes()).run(input)
    return 0
