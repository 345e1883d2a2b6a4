"""`localgemma prompt`: the exact text and token ids that a model would be given."""

from typing import Annotated

import typer

from localgemma_cli import options, sampling
from localgemma_cli.backends.local.source import fetch, fetch_adapter, tokenizer_folder
from localgemma_cli.chat.incoming import read_incoming
from localgemma_cli.commands.planned import Choice, source_of
from localgemma_cli.commands.systemtext import read_system
from localgemma_cli.conversation import Conversation
from localgemma_cli.environment import standard_streams
from localgemma_cli.errors import UsageError
from localgemma_cli.planning.hardware import probe
from localgemma_cli.render.json import write_line
from localgemma_cli.render.progress import silent
from localgemma_cli.render.sanitize import visible


def prompt(
    prompt: Annotated[list[str] | None, typer.Argument(help="The prompt, or - for standard input.")] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    system: options.System = None,
    system_file: options.SystemFile = None,
    mode: options.ModeOption = sampling.Mode.CHAT,
    json: options.Json = False,
) -> None:
    """Print the exact text and token ids that a model would be given.

    Example: localgemma prompt -m demo -s "Answer in one word." "What is the smallest model?"
    """
    streams = standard_streams()
    incoming = read_incoming(prompt or [], streams.stdin, interactive=False)
    if incoming.prompt is None:
        raise UsageError("There is no prompt to show.", 'Give one: localgemma prompt "Hello"')
    source = source_of(Choice(model=model, adapter=adapter, revision=revision, offline=offline), probe())
    folder = tokenizer_folder(fetch(source, silent), fetch_adapter(source, silent))
    from localgemma_cli.backends.local.loader import load_tokenizer
    from localgemma_cli.backends.local.prompting import Prompter

    prompter = Prompter(load_tokenizer(folder))
    text = sampling.system_for(mode, read_system(system, system_file))
    messages = Conversation(text).messages(incoming.prompt)
    rendered, ids = prompter.text(messages), prompter.encode(messages)
    if json:
        write_line(streams.stdout, {"text": rendered, "ids": ids})
    else:
        shown = visible(rendered) if streams.stdout.isatty() else rendered
        streams.stdout.write(f"{shown}\n{' '.join(map(str, ids))}\n")
