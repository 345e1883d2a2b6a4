"""`localgemma [PROMPT]`: one answer, or the interactive chat."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import typer

from localgemma_cli import __version__
from localgemma_cli.command_options import SAVED_PROMPT, drop_weaker, names_model, takes_options, value_places
from localgemma_cli.commands.torchrun import count_processes, follow_torchrun
from localgemma_cli.constraint import Constraint
from localgemma_cli.environment import standard_streams
from localgemma_cli.errors import UsageError
from localgemma_cli.options import Options
from localgemma_cli.sampling import Sampling, sampling_for
from localgemma_cli.saved_prompts import FilledPrompt, fill_fields

LITERAL = "localgemma.literal"  # in a context's `meta`: the prompt follows `--`
# With one of these options a single word is a question, not a mistyped command.
_MAKE_A_QUESTION = (
    "model",
    "adapter",
    "endpoint",
    "system",
    "system_file",
    "file",
    "session",
    "continue_",
    "saved_prompt",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"localgemma {__version__}")
        raise typer.Exit


@takes_options("chat")
def chat(
    ctx: typer.Context,
    options: Options,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", help="Answer this prompt, or standard input for -. Default: start a chat."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> int:
    """Chat with Google's Gemma on your own machine, or get one answer for a pipe or a script.

    \b
    Examples:
      localgemma -m 9b --preset speed
      localgemma -m demo "Who are you?"
      git diff | localgemma "Summarize:"
      localgemma --json - < question.txt
    """
    if (code := follow_torchrun()) is not None:
        return code
    places = value_places(ctx)
    options = drop_weaker(options, places)
    refuse_conflicts(options, places)
    if not (options.json or options.jsonl):
        options = replace(options, logprobs=None)  # from config.toml; only JSON has them
    saved = fill_fields(ctx.meta.get(SAVED_PROMPT), options.field or [])
    literal = bool(ctx.meta.get(LITERAL))
    return _chat(options, prompt or [], saved, places, literal=literal, processes=count_processes())


def _chat(
    options: Options,
    words: list[str],
    saved: FilledPrompt | None,
    places: Mapping[str, str],
    *,
    literal: bool,
    processes: int,
) -> int:
    """Read the prompt, choose the engine, then answer once or start the chat."""
    from localgemma_cli.chat.chat_run import ChatRun
    from localgemma_cli.chat.engine import LocalEngine
    from localgemma_cli.chat.engine_choice import EngineChoice
    from localgemma_cli.chat.prompt_input import is_stdin, read_prompt_input, read_system
    from localgemma_cli.models.hub.consent import agree_to_download
    from localgemma_cli.models.own_models import own_model
    from localgemma_cli.warm.key import parse_keep_alive

    streams, own = standard_streams(), own_model(options.model)
    constraint = _constraint(options)
    defaults = own.sampling if own else None
    sampling = sampling_for(options.mode, defaults, constraint=constraint, **options.values_for(Sampling))
    system = read_system(options.system, options.system_file, own)
    as_file = any(map(is_stdin, options.file or []))
    question = read_prompt_input(
        words,
        streams,
        saved,
        interactive=options.interactive,
        as_file=as_file,
        no_stdin=options.no_stdin,
        quiet=options.quiet,
    )
    if question.prompt is None:
        _refuse_in_chat(options)
    if not literal:
        _refuse_mistyped(words, question.prompt, places)
    keep_seconds = parse_keep_alive(options.keep_alive)
    if question.interactive or processes > 1:  # a chat keeps its model itself
        keep_seconds = 0
    choice = EngineChoice(options, places, streams.say, processes, keep_seconds)
    engine = choice.first()
    run = ChatRun(streams, engine, choice.switch, system, sampling, options)
    run.explain()
    if isinstance(engine, LocalEngine):
        agree_to_download(engine.source, streams, named=names_model(places), yes=options.yes)
    return run.converse(question) if question.interactive else run.answer(question)


def _refuse_mistyped(words: list[str], prompt: str | None, places: Mapping[str, str]) -> None:
    """UsageError for a prompt of one word without an option that makes it a question."""
    asked = any(places[name] != "DEFAULT" for name in _MAKE_A_QUESTION)
    if prompt and [prompt] == words and not asked:
        from localgemma_cli.commands.mistyped import refuse_bare_word

        refuse_bare_word(prompt)


def _refuse_in_chat(options: Options) -> None:
    if options.json or options.jsonl:
        raise UsageError("--json and --jsonl need a prompt.", 'Give one: localgemma --json "Hello"')
    for name in _typed(options):
        raise UsageError(f"--{name} needs a prompt.", f'Give one: localgemma --{name} … "Hello"')


def _constraint(options: Options) -> Constraint | None:
    if options.schema is None and options.choice is None and options.regex is None:
        return None
    from localgemma_cli.chat.constraint_input import read_constraint

    return read_constraint(options.schema, options.choice, options.regex)


def _typed(options: Options) -> list[str]:
    """The options in use that ask for an answer of a form."""
    values = {"schema": options.schema, "choice": options.choice, "regex": options.regex}
    return [*(name for name, value in values.items() if value is not None), *["extract"] * options.extract]


def refuse_conflicts(options: Options, places: Mapping[str, str]) -> None:
    """UsageError for options that cannot be used together."""
    typed = _typed(options)
    if len(typed) > 1:
        raise UsageError(f"--{typed[0]} and --{typed[1]} cannot be used together.", "Remove one of them.")
    if options.interactive and typed:
        raise UsageError(f"--interactive cannot be used with --{typed[0]}.", "Remove one of them.")
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl cannot be used together.", "Remove one of them.")
    if options.interactive and (options.json or options.jsonl):
        raise UsageError("--interactive cannot be used with --json or --jsonl.", "Remove one of them.")
    if places["logprobs"] == "COMMANDLINE" and not (options.json or options.jsonl):
        raise UsageError("--logprobs needs --json or --jsonl.", "Add one of them.")
    if options.session is not None and options.continue_:
        raise UsageError("--session and --continue cannot be used together.", "Remove one of them.")
