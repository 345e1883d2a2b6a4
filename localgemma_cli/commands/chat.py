"""`localgemma [PROMPT]`: one answer, or the interactive chat."""

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localgemma_cli import __version__, options
from localgemma_cli.environment import standard_streams, torchrun_rank
from localgemma_cli.errors import UsageError
from localgemma_cli.sampling import Mode, sampling_for

if TYPE_CHECKING:  # what follows the parsing is imported where it is used: `--help` does without
    from localgemma_cli.chat.engine import ChatEngine
    from localgemma_cli.models.own_models import OwnModel

LITERAL = "localgemma.literal"  # in a context's `meta`: the prompt stands behind `--`
# Options that make one word a question: none of them belongs to a mistyped command.
_MAKE_A_QUESTION = ("model", "adapter", "endpoint", "system", "system_file", "file", "session", "continue_")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"localgemma {__version__}")
        raise typer.Exit


def chat(
    ctx: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="The prompt, or - for standard input. Without one: a chat."),
    ] = None,
    model: options.Model = None,
    preset: options.Preset = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    template: options.Template = None,
    force: options.Force = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    system: options.System = None,
    system_file: options.SystemFile = None,
    mode: options.ModeOption = Mode.CHAT,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
    context: options.Context = None,
    on_overflow: options.Overflow = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    compile: options.Compile = None,
    assistant: options.Assistant = None,
    device_memory: options.DeviceMemory = None,
    host_memory: options.HostMemory = None,
    endpoint: options.EndpointUrl = None,
    endpoint_dialect: options.EndpointDialect = "auto",
    endpoint_timeout: options.EndpointTimeout = 120.0,
    file: options.File = None,
    session: options.Session = None,
    continue_: options.Continue = False,
    no_save: options.NoSave = False,
    json: options.Json = False,
    jsonl: options.JsonLines = False,
    plain: options.Plain = False,
    sanitize: options.Sanitize = False,
    accessible: options.Accessible = False,
    vi: options.Vi = False,
    interactive: options.Interactive = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
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
    from localgemma_cli.chat.chat_run import ChatRun, OutputOptions
    from localgemma_cli.chat.engine import LocalEngine, remote_model, wants_endpoint
    from localgemma_cli.chat.open_session import SaveOptions
    from localgemma_cli.chat.prompt_input import is_stdin, read_prompt_input
    from localgemma_cli.commands.consent import agree_to_download
    from localgemma_cli.commands.switching import Switching
    from localgemma_cli.commands.system_text import read_system
    from localgemma_cli.models.own_models import own_model

    rank = torchrun_rank(os.environ)
    if rank is not None and rank.index > 0:
        from localgemma_cli.backends.pytorch.tensor_parallel import follow

        return follow()
    streams = standard_streams()
    _refuse_conflicts(json=json, jsonl=jsonl, interactive=interactive)
    if session is not None and continue_:
        raise UsageError("--session and --continue cannot both be had.", "Take one of them.")
    own = own_model(model)
    chosen = sampling_for(
        mode,
        own.sampling if own else None,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    system_text = read_system(system, system_file, own)
    as_file = any(map(is_stdin, file or []))
    incoming = read_prompt_input(prompt or [], streams.stdin, interactive=interactive, as_file=as_file)
    if incoming.prompt is None and (json or jsonl):
        raise UsageError("--json and --jsonl need a prompt.", 'Give one: localgemma --json "Hello"')
    sources = {name: str(getattr(ctx.get_parameter_source(name), "name", "DEFAULT")) for name in ctx.params}
    asked = {name for name in _MAKE_A_QUESTION if sources[name] != "DEFAULT"}
    if incoming.prompt and [incoming.prompt] == prompt and not asked and not ctx.meta.get(LITERAL):
        from localgemma_cli.commands.mistyped import refuse_bare_word

        refuse_bare_word(incoming.prompt)
    if own and own.endpoint and not endpoint:
        endpoint, model, sources["model"] = own.endpoint, own.repository, "COMMANDLINE"
    remote = partial(
        _remote, dialect=endpoint_dialect, timeout=endpoint_timeout, quiet=quiet, verbose=verbose
    )
    local = partial(
        _local,
        template,
        preset=preset,
        offline=offline,
        force=force,
        device=device,
        dtype=dtype,
        quantization=quantization,
        attention=attention,
        compile=compile,
        context=context,
        device_memory=device_memory,
        host_memory=host_memory,
        processes=rank.count if rank else 1,
    )
    if wants_endpoint(endpoint, sources):
        target: ChatEngine = remote(str(endpoint), model=remote_model(model, sources))
    else:
        goes_on = (session is not None or continue_) and adapter is None  # an adapter names its base
        named_model = _spoken_with(session) if model is None and goes_on else model
        target = local(own, model=named_model, adapter=adapter, revision=revision, assistant=assistant)
        endpoint = None
    talk = ChatRun(
        streams,
        target,
        Switching(local, remote, endpoint, yes).target,
        mode,
        system_text,
        chosen,
        on_overflow,
        file or [],
        OutputOptions(json, jsonl, quiet, verbose, plain, sanitize, accessible, vi),
        SaveOptions(session, continue_, not no_save),
    )
    talk.explain()
    if isinstance(target, LocalEngine):
        named = any(sources[name] != "DEFAULT" for name in ("model", "adapter"))
        agree_to_download(target.source, streams, named=named, yes=yes)
    return talk.converse(incoming) if incoming.interactive else talk.answer(incoming)


def _spoken_with(session: str | None) -> str | None:
    """The built-in model whose the last answer is, in the conversation of that name or the latest."""
    from localgemma_cli.models.catalog import catalogue
    from localgemma_cli.sessions.opening import open_store
    from localgemma_cli.sessions.store import default_path

    if not default_path().exists():
        return None
    store = open_store()
    try:
        id = store.latest() if session is None else store.named(session)
        answered = store.last_model(id) if id is not None else None
    finally:
        store.close()
    return next((facts.name for facts in catalogue() if facts.id == answered), None)


def _local(template: str | None, own: "OwnModel | None", **choice: Any) -> "ChatEngine":
    """The model that the options name, planned; see `Choice`."""
    from localgemma_cli.chat.engine import LocalEngine
    from localgemma_cli.commands.model_options import Choice, planned, template_for
    from localgemma_cli.planning.plan import require_fits

    form = template_for(template, own)
    source, plan = planned(Choice(**choice))
    require_fits(plan)
    return LocalEngine(source, plan, form)


def _remote(
    url: str, *, dialect: str, model: str | None, timeout: float, quiet: bool, verbose: bool
) -> "ChatEngine":
    from localgemma_cli.backends.http.endpoint import parse_endpoint
    from localgemma_cli.chat.engine import HttpEngine

    server = parse_endpoint(url, dialect=dialect, model=model, timeout=timeout)
    say = standard_streams().say
    return HttpEngine(server, _unheard if quiet else say, say if verbose else _unheard)


def _unheard(_: str) -> None:
    pass


def _refuse_conflicts(*, json: bool, jsonl: bool, interactive: bool) -> None:
    if json and jsonl:
        raise UsageError("--json and --jsonl cannot both be had.", "Take one of them.")
    if interactive and (json or jsonl):
        raise UsageError("--interactive is for people, --json and --jsonl for scripts.", "Leave one out.")
