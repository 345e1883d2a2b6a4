"""`localgemma prompt`: the exact text and token ids that a model would be given."""

from typing import Annotated

import typer

from localgemma_cli import options, sampling
from localgemma_cli.chat.prompt_input import read_prompt_input
from localgemma_cli.commands.model_options import Choice, source_of, template_for
from localgemma_cli.commands.system_text import read_system
from localgemma_cli.conversation import Conversation
from localgemma_cli.environment import standard_streams
from localgemma_cli.errors import UsageError
from localgemma_cli.models.fetch import fetch_tokenizer
from localgemma_cli.models.own_models import own_model
from localgemma_cli.planning.hardware import probe
from localgemma_cli.render.json import write_line
from localgemma_cli.render.progress import show_progress


def prompt(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The prompt, or - for standard input.")
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    template: options.Template = None,
    force: options.Force = False,
    offline: options.Offline = False,
    system: options.System = None,
    system_file: options.SystemFile = None,
    mode: options.ModeOption = sampling.Mode.CHAT,
    json: options.Json = False,
) -> None:
    """Print the exact text and token ids that a model would be given; needs its tokenizer only.

    Example: localgemma prompt -m demo -s "Answer in one word." "What is the smallest model?"
    """
    streams = standard_streams()
    incoming = read_prompt_input(prompt or [], streams.stdin, interactive=False)
    if incoming.prompt is None:
        raise UsageError("There is no prompt to show.", 'Give one: localgemma prompt "Hello"')
    own = own_model(model)
    form = template_for(template, own)
    text = sampling.system_for(mode, read_system(system, system_file, own))
    choice = Choice(model=model, adapter=adapter, revision=revision, offline=offline, force=force)
    source = source_of(choice, probe())
    with show_progress(streams.stderr, quiet=False) as progress:
        folder = fetch_tokenizer(source, progress)

    from localgemma_cli.models.load_errors import loading
    from localgemma_cli.prompts.prompter import Prompter
    from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

    messages = Conversation(text).messages(incoming.prompt)
    with loading("tokenizer", folder):
        prompter = Prompter(load_tokenizer(folder), form, source.facts.form)
        rendered, ids = prompter.text(messages), prompter.encode(messages)
    if json:
        write_line(streams.stdout, {"text": rendered, "ids": ids})
        return
    if prompter.note and (form == "auto" or not prompter.form.is_raw):
        streams.say(f"note: {prompter.note}")
    streams.emit(f"{rendered}\n{' '.join(map(str, ids))}\n")
