"""`localgemma prompt`: the exact text and token ids that a model receives."""

from pathlib import Path
from typing import Annotated

import typer

from localgemma_cli.chat.prompt_input import read_prompt_input, read_system
from localgemma_cli.command_options import SAVED_PROMPT, drop_weaker, takes_options, value_places
from localgemma_cli.conversation import Conversation, Message
from localgemma_cli.environment import standard_streams
from localgemma_cli.errors import UsageError
from localgemma_cli.models.fetch import fetch_tokenizer
from localgemma_cli.models.own_models import own_model
from localgemma_cli.options import Options
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.model_options import choose_template, find_source
from localgemma_cli.render.json import write_line
from localgemma_cli.render.progress import show_progress
from localgemma_cli.sampling import system_for
from localgemma_cli.saved_prompts import fill_fields
from localgemma_cli.types import PromptForm


@takes_options("prompt")
def prompt(
    ctx: typer.Context,
    options: Options,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Show this prompt, or standard input for -."),
    ] = None,
) -> None:
    """Print the exact text and token ids that a model receives; downloads its tokenizer only.

    Saved prompts are a command of their own: localgemma prompts

    Example: localgemma prompt -m demo -s "Answer in one word." "What is the smallest model?"
    """
    streams, options = standard_streams(), drop_weaker(options, value_places(ctx))
    saved = fill_fields(ctx.meta.get(SAVED_PROMPT), options.field or [])
    question = read_prompt_input(prompt or [], streams, saved, no_stdin=options.no_stdin).prompt
    if question is None:
        raise UsageError("No prompt given.", 'Give one: localgemma prompt "Hello"')
    own = own_model(options.model)
    template = choose_template(options.template, own)
    system = system_for(options.mode, read_system(options.system, options.system_file, own))
    source = find_source(options, probe())
    with show_progress(streams.stderr, quiet=False) as progress:
        folder = fetch_tokenizer(source, progress)
    messages = Conversation(system).messages(question)
    text, ids, note = _rendered(messages, folder, template, source.facts.form)
    if options.json:
        write_line(streams.stdout, {"text": text, "ids": ids})
        return
    if note:
        streams.say(f"note: {note}")
    streams.emit(f"{text}\n{' '.join(map(str, ids))}\n")


def _rendered(
    messages: tuple[Message, ...], folder: Path, template: str, form: PromptForm
) -> tuple[str, list[int], str | None]:
    """The text of `messages`, its token ids, and what a person has to know about the template."""
    from localgemma_cli.models.load_errors import loading
    from localgemma_cli.prompts.prompter import Prompter
    from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

    with loading("tokenizer", folder):
        prompter = Prompter(load_tokenizer(folder), template, form)
        noted = template == "auto" or not prompter.form.is_raw
        note = prompter.note if noted else None
        return prompter.text(messages), prompter.encode(messages), note
