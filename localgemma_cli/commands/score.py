"""`localgemma score`: the perplexity of texts under a model."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Annotated, cast

import typer

from localgemma_cli.chat.engine import LocalEngine
from localgemma_cli.chat.prompt_input import is_stdin
from localgemma_cli.chat.standard_input import read_stdin
from localgemma_cli.command_options import names_model, takes_options, value_places
from localgemma_cli.environment import Streams, standard_streams
from localgemma_cli.errors import UsageError
from localgemma_cli.events import LoadProgress
from localgemma_cli.models.hub.consent import agree_to_download
from localgemma_cli.models.own_models import own_model
from localgemma_cli.options import Options
from localgemma_cli.planning.model_options import plan_model
from localgemma_cli.planning.plan import LoadPlan, require_fits
from localgemma_cli.render.json import SCHEMA, write_line
from localgemma_cli.render.progress import show_progress
from localgemma_cli.text import read_text
from localgemma_cli.text_score import TextScore

if TYPE_CHECKING:
    from localgemma_cli.backends.base import TextBackend

_HEADING = "perplexity  bits/byte    tokens  text\n"


@takes_options("score")
def score(
    ctx: typer.Context,
    options: Options,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Score this text file, or standard input for -; repeatable."),
    ] = None,
) -> None:
    """Print the perplexity of texts under a model, and its bits per byte; less is better.

    Example: localgemma score -m 2b --context 2048 chapter1.txt chapter2.txt
    """
    streams = standard_streams()
    texts = _read_texts(files or [], streams)
    engine = _engine(options, ctx)
    stride = _stride(options.stride, engine.plan)
    agree_to_download(engine.source, streams, named=names_model(value_places(ctx)), yes=options.yes)
    if not options.quiet:
        for warning in engine.warnings:
            streams.say(warning)
    with show_progress(streams.stderr, quiet=options.quiet) as progress:
        backend = cast("TextBackend", engine.load(progress))  # PyTorch's, which `_engine` has made sure of
        scores = [
            backend.score_text(
                text, stride, lambda done, total: progress(LoadProgress("reading", done, total, "tokens"))
            )
            for text in texts.values()
        ]
    show = _show_json if options.json else _show_table
    show(list(texts), scores, engine.plan, stride, streams)


def _read_texts(files: Sequence[str], streams: Streams) -> dict[str, str]:
    """The texts by the names that the user gave; UsageError for one that is empty, or for none."""
    if not files:
        raise UsageError("No text given.", "Name a file, or - for standard input: localgemma score essay.txt")
    texts = {
        name: read_stdin(streams.stdin) if is_stdin(name) else read_text(name, pipes=True)
        for name in dict.fromkeys(files)
    }
    for name, text in texts.items():
        if not text:
            what = "Standard input" if is_stdin(name) else name
            raise UsageError(f"{what} is empty.", "Give a text with at least one character.")
    return texts


def _engine(options: Options, ctx: typer.Context) -> LocalEngine:
    """The model, planned; UsageError for one that PyTorch does not run."""
    own = own_model(options.model)
    if own and own.endpoint:
        raise UsageError(
            f"{options.model} is a server's model, and servers do not report the probabilities of a text.",
            "Use a model on this machine.",
        )
    source, plan = plan_model(options, places=value_places(ctx))
    if plan.quantization == "gguf":
        raise UsageError(
            "llama.cpp does not report the probabilities of a text; score needs a model that PyTorch runs.",
            "Use the model's safetensors repository instead of its GGUF file.",
        )
    require_fits(plan)
    return LocalEngine(source, plan, "raw")


def _stride(wanted: int | None, plan: LoadPlan) -> int:
    """How many tokens each window adds; UsageError for more than a window has."""
    most = plan.context_length - 1  # a window begins with <bos>
    if wanted is None:
        return max(plan.context_length // 2, 1)
    if not 1 <= wanted <= most:
        raise UsageError(
            f"--stride must be between 1 and {most} (got {wanted}).", "It is less than --context."
        )
    return wanted


def _show_table(
    names: Sequence[str], scores: Sequence[TextScore], _plan: LoadPlan, _stride: int, streams: Streams
) -> None:
    rows = list(zip(names, scores, strict=True))
    if len(rows) > 1:
        rows.append(("total", reduce(add, scores)))
    lines = (f"{_row(each)}  {name}\n" for name, each in rows)
    streams.emit("".join([_HEADING, *lines]))


def _row(score: TextScore) -> str:
    return f"{score.perplexity:>10.4g}  {score.bits_per_byte:>9.4f}  {score.tokens:>8}"


def _show_json(
    names: Sequence[str], scores: Sequence[TextScore], plan: LoadPlan, stride: int, streams: Streams
) -> None:
    texts = [{"text": name, **_figures(each)} for name, each in zip(names, scores, strict=True)]
    report = {
        "schema": SCHEMA,
        "model": plan.model.id,
        "preset": plan.preset,
        "context_length": plan.context_length,
        "stride": stride,
        "texts": texts,
        "total": _figures(reduce(add, scores)),
        "plan": plan.to_dict(),
    }
    write_line(streams.stdout, report)


def _figures(score: TextScore) -> dict[str, object]:
    return {**asdict(score), "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
