"""One run of the batch command once its options are parsed."""

import hashlib
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import BinaryIO

from localgemma_cli.batch.answer_rows import RowAnswers
from localgemma_cli.batch.progress import BatchProgress
from localgemma_cli.batch.read_ahead import ReadAhead
from localgemma_cli.batch.records import Records, format_of_input
from localgemma_cli.batch.results import Results, ResultsFile, StreamResults
from localgemma_cli.batch.resume import Resumed, Tally, skip_answered
from localgemma_cli.batch.rows import Row, RowDefaults, make_rows
from localgemma_cli.batch.stopping import run_until_stopped, stop_on_signals
from localgemma_cli.chat.constraint_input import read_constraint
from localgemma_cli.chat.engine import ChatEngine, LocalEngine
from localgemma_cli.chat.engine_choice import EngineChoice
from localgemma_cli.chat.phrases import format_count
from localgemma_cli.chat.prompt_input import is_stdin, read_system
from localgemma_cli.chat.start_engine import explain_engine, start_engine
from localgemma_cli.documents import failure_reason
from localgemma_cli.environment import Streams, expand_home
from localgemma_cli.errors import (
    BadRowsError,
    ExitCode,
    InterruptedAnswer,
    LocalGemmaError,
    NotFoundError,
    UsageError,
)
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.own_models import own_model
from localgemma_cli.options import Options
from localgemma_cli.planning.rows import plan_rows
from localgemma_cli.prompt_template import missing_field, parse_template
from localgemma_cli.render.progress import show_progress
from localgemma_cli.sampling import Sampling, sampling_for

_UNSTABLE = ("memory", "devices", "reasons", "warnings")  # of a plan: free memory changes them
_EXAMPLE = "Name the fields to use, for example: --prompt-template 'Translate: {text}'"


@dataclass(frozen=True)
class BatchRun:
    """`places`: where each option's value comes from; `processes`: how many share a local model's layers."""

    streams: Streams
    options: Options
    places: Mapping[str, str]
    processes: int = 1

    def run(self, path: str) -> None:
        """Answer the rows of the file at `path`; BadRowsError if a row has no answer."""
        options = self.options
        if options.resume and options.output == "-":
            raise UsageError("--resume needs a file.", "Name it with -o.")
        file, size = self._open_input(path)
        records = Records(file, format_of_input(path, options.input_format))
        defaults = self._row_defaults(records.columns)
        out = None if options.output == "-" else ResultsFile(options.output, resume=options.resume)
        engine = EngineChoice(options, self.places, self.streams.say, self.processes).first()
        explain_engine(engine, self.streams, options)
        key = _identify(engine, options)
        rows = ReadAhead(make_rows(records, defaults))
        resumed = skip_answered(rows, out, key) if out and options.resume else Resumed()
        if size is None or resumed.again or rows.wait(None):  # a pipe's rows come while the model loads
            try:
                self._answer(rows, out or StreamResults(self.streams.stdout), engine, key, resumed, size)
            except LocalGemmaError as error:
                error.hint = f"{error.hint} {self._resume_hint(out)}"
                raise
        if out:
            out.close()
        _refuse_failed(resumed.tally)

    def _answer(
        self,
        rows: ReadAhead[Row],
        results: Results,
        engine: ChatEngine,
        key: str,
        resumed: Resumed,
        size: int | None,
    ) -> None:
        if isinstance(engine, LocalEngine):
            engine = replace(engine, plan=plan_rows(engine.plan))
        backend = start_engine(engine, self.streams, self.options, self.places)
        tally = resumed.tally
        with stop_on_signals() as stop, self._status() as status:
            progress = BatchProgress(size, self.streams.stderr.encoding, rows=tally.rows, read=tally.read)

            def show(tally: Tally) -> None:
                status(LoadProgress(progress.describe(tally.rows, tally.failed, tally.read)))

            answers = RowAnswers(rows, results, engine.run(0.0), key, resumed, stop.cancel, show)
            run_until_stopped(lambda: answers.answer(backend), stop)
        if stop.number is not None and not answers.is_complete:
            raise _stopped(stop.number, tally.rows)
        if self.streams.stderr.isatty() and not self.options.quiet:
            self.streams.say(f"[{progress.summarize(tally.rows, tally.failed)}]")

    def _open_input(self, path: str) -> tuple[BinaryIO, int | None]:
        """The input and its size in bytes, None for a pipe."""
        try:
            file = self.streams.stdin.buffer if is_stdin(path) else expand_home(path).open("rb")
            status = os.fstat(file.fileno())
        except OSError as error:
            raise NotFoundError(f"Cannot read {path}: {failure_reason(error)}.", "Check the path.") from None
        return file, status.st_size if stat.S_ISREG(status.st_mode) else None

    def _row_defaults(self, columns: tuple[str, ...] | None) -> RowDefaults:
        """UsageError for a template whose fields are not among the columns of CSV."""
        options, own = self.options, own_model(self.options.model)
        template = None
        if options.prompt_template is not None:
            template = parse_template(options.prompt_template, "--prompt-template")
            if not template.fields:
                raise UsageError("--prompt-template has no field.", _EXAMPLE)
        needed = template.fields if template else ("prompt",)
        if columns is not None and (missing := next((name for name in needed if name not in columns), None)):
            raise missing_field(missing, columns) if template else _no_prompt(columns)
        return RowDefaults(
            template=template,
            system=read_system(options.system, options.system_file, own),
            mode=options.mode,
            sampling=sampling_for(
                options.mode,
                own.sampling if own else None,
                constraint=read_constraint(options.schema, options.choice, options.regex),
                **options.values_for(Sampling),
            ),
            is_text=columns is not None,
        )

    def _status(self) -> AbstractContextManager[ProgressSink]:
        quiet = self.options.quiet or self.options.accessible
        return show_progress(self.streams.stderr, quiet=quiet, first="answering")

    def _resume_hint(self, out: ResultsFile | None) -> str:
        words = sys.argv[1:]
        if out is None or not out.is_regular:
            return "Results that were written are complete."
        more = [] if self.options.resume else ["--resume"]
        return f"Resume with: {shlex.join(['localgemma', *words, *more])}"


def _identify(engine: ChatEngine, options: Options) -> str:
    """A digest of what decides the answers besides the rows."""
    about: list[object] = [options.endpoint, options.endpoint_dialect, engine.model]
    if isinstance(engine, LocalEngine):
        plan = {name: value for name, value in engine.plan.to_dict().items() if name not in _UNSTABLE}
        about = [plan, engine.template, engine.source.revision]
    return hashlib.blake2b(json.dumps(about).encode(), digest_size=4).hexdigest()


def _no_prompt(columns: tuple[str, ...]) -> UsageError:
    return UsageError(f"The input has no column prompt, but: {', '.join(columns) or 'none'}.", f"{_EXAMPLE}.")


def _stopped(number: int, rows: int) -> LocalGemmaError:
    error = InterruptedAnswer(f"Stopped after {format_count(rows, 'row')}.", "What is written is complete.")
    if number == signal.SIGTERM:
        error.exit_code = ExitCode.TERMINATED
    return error


def _refuse_failed(tally: Tally) -> None:
    if tally.failed:
        raise BadRowsError(
            f"{tally.failed} of {format_count(tally.rows, 'row')} failed.",
            'The results of these rows have an "error".',
        )
