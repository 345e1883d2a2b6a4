"""`localgemma [PROMPT]`: one answer, or the interactive chat."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from localgemma_cli import __version__, options
from localgemma_cli.environment import Streams, standard_streams
from localgemma_cli.errors import LocalGemmaError, UsageError
from localgemma_cli.sampling import Mode, OnOverflow, Sampling, sampling_for, system_for

if TYPE_CHECKING:  # what follows the parsing is imported where it is used: `--help` does without
    from localgemma_cli.backends.base import Backend
    from localgemma_cli.backends.local.source import Source
    from localgemma_cli.chat.incoming import Incoming
    from localgemma_cli.chat.turn import Settings
    from localgemma_cli.events import ProgressSink
    from localgemma_cli.planning.plan import LoadPlan
    from localgemma_cli.render.base import Renderer


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"localgemma {__version__}")
        raise typer.Exit


def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="The prompt, or - for standard input. Without one: a chat.")
    ] = None,
    model: options.Model = None,
    preset: options.Preset = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
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
    json: options.Json = False,
    jsonl: options.JsonLines = False,
    interactive: options.Interactive = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> int:
    """Chat with Google's Gemma on your own machine, or get one answer for a pipe or a script."""
    from localgemma_cli.chat.incoming import read_incoming
    from localgemma_cli.commands.planned import Choice, planned
    from localgemma_cli.commands.systemtext import read_system
    from localgemma_cli.planning.plan import require_fits

    streams = standard_streams()
    _refuse_conflicts(json=json, jsonl=jsonl, interactive=interactive)
    chosen = sampling_for(
        mode,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    system_text = read_system(system, system_file)
    incoming = read_incoming(prompt or [], streams.stdin, interactive=interactive)
    if incoming.prompt is None and (json or jsonl):
        raise UsageError("--json and --jsonl need a prompt.", 'Give one: localgemma --json "Hello"')
    choice = Choice(
        model=model,
        preset=preset,
        adapter=adapter,
        revision=revision,
        offline=offline,
        device=device,
        dtype=dtype,
        quantization=quantization,
        attention=attention,
        compile=compile,
        assistant=assistant,
        context=context,
        device_memory=device_memory,
        host_memory=host_memory,
    )
    source, plan = planned(choice)
    require_fits(plan)
    session = _Session(
        streams, source, plan, mode, system_text, chosen, on_overflow, json, jsonl, quiet, verbose
    )
    session.explain()
    return session.converse(incoming) if incoming.interactive else session.answer(incoming)


@dataclass(frozen=True)
class _Session:
    """Everything decided; what is left is to load and to answer."""

    streams: Streams
    source: "Source"
    plan: "LoadPlan"
    mode: Mode
    system: str | None
    sampling: Sampling
    on_overflow: OnOverflow | None
    json: bool
    jsonl: bool
    quiet: bool
    verbose: bool

    def explain(self) -> None:
        if not self.quiet:
            for warning in self.plan.warnings:
                self._say(f"warning: {warning}")
        if self.verbose:
            for reason in self.plan.reasons:
                self._say(f"plan: {reason}")

    def answer(self, incoming: "Incoming") -> int:
        from localgemma_cli.chat.oneshot import answer_once
        from localgemma_cli.render.progress import on_stderr

        assert incoming.prompt is not None  # `read_incoming` gives one wherever no chat follows
        started = time.perf_counter()
        with on_stderr(self.streams.stderr, quiet=self.quiet) as progress:
            backend = self._load(progress)
        seconds = time.perf_counter() - started
        settings = self._settings(OnOverflow.ERROR)
        system = system_for(self.mode, self.system)
        return answer_once(backend, system, incoming.prompt, settings, lambda: self._renderer(seconds))

    def converse(self, incoming: "Incoming") -> int:
        from localgemma_cli.chat.background import BackgroundLoad
        from localgemma_cli.chat.repl import Chat, Repl

        keyboard = self.streams.stdin if self.streams.stdin.isatty() else _controlling_terminal()
        chat = Chat(
            label=f"{self.plan.model.name} · {self.plan.preset}",
            system=self.system,
            mode=self.mode,
            settings=self._settings(OnOverflow.TRIM),
            make_renderer=lambda: self._renderer(0.0),
            say=self._say,
            report=self._report,
            quiet=self.quiet,
        )
        Repl(chat, BackgroundLoad(self._load), self.streams, keyboard).run(incoming.prompt)
        return 0

    def _load(self, progress: "ProgressSink") -> "Backend":
        from localgemma_cli.backends.local.source import fetch, fetch_adapter

        folder, adapter = fetch(self.source, progress), fetch_adapter(self.source, progress)
        from localgemma_cli.backends.local.backend import load

        return load(self.plan, folder, progress, adapter)

    def _settings(self, default: OnOverflow) -> "Settings":
        from localgemma_cli.chat.turn import Settings

        return Settings(self.sampling, self.on_overflow or default, self._tell_trimmed)

    def _renderer(self, load_seconds: float) -> "Renderer":
        stdout = self.streams.stdout
        if self.json or self.jsonl:
            from localgemma_cli.render.json import JsonLinesRenderer, JsonRenderer, Run

            run = Run(self.plan.model.id, self.plan.preset, "local", load_seconds, self.plan.to_dict())
            return JsonRenderer(stdout, run) if self.json else JsonLinesRenderer(stdout, run)
        if stdout.isatty():
            from localgemma_cli.render.markdown import MarkdownRenderer

            return MarkdownRenderer(stdout)
        from localgemma_cli.render.plain import PlainRenderer

        return PlainRenderer(stdout)

    def _tell_trimmed(self, turns: int) -> None:
        if not self.quiet:
            what = "the oldest turn was" if turns == 1 else f"the {turns} oldest turns were"
            self._say(f"[the context is full: {what} dropped]")

    def _say(self, text: str) -> None:
        self.streams.stderr.write(text + "\n")
        self.streams.stderr.flush()

    def _report(self, error: LocalGemmaError) -> None:
        from localgemma_cli.render.sanitize import visible

        self._say(f"{visible(error.message)}\n  {visible(error.hint)}")


def _refuse_conflicts(*, json: bool, jsonl: bool, interactive: bool) -> None:
    if json and jsonl:
        raise UsageError("--json and --jsonl cannot both be had.", "Take one of them.")
    if interactive and (json or jsonl):
        raise UsageError("--interactive is for people, --json and --jsonl for scripts.", "Leave one out.")


def _controlling_terminal() -> TextIO:
    """Where the chat goes on after standard input was a pipe."""
    try:
        return open("/dev/tty", encoding="utf-8")  # open as long as the process
    except OSError:
        raise UsageError("There is no terminal to chat on.", "Leave --interactive out.") from None
