"""One run of the batch command once its options are parsed."""

import hashlib
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from localgemma_cli.batch.answer_rows import ResultFields, RowAnswers
from localgemma_cli.batch.progress import BatchProgress
from localgemma_cli.batch.read_ahead import ReadAhead
from localgemma_cli.batch.records import Records, format_of_input
from localgemma_cli.batch.results import Results, ResultsFile, StreamResults
from localgemma_cli.batch.resume import Resumed, Tally, skip_answered
from localgemma_cli.batch.rows import Row, RowDefaults, make_rows
from localgemma_cli.batch.stopping import Stop, run_until_stopped, stop_on_signals
from localgemma_cli.chat.engine import ChatEngine, LocalEngine
from localgemma_cli.chat.engine_choice import EngineChoice
from localgemma_cli.chat.prompt_input import is_stdin, read_system
from localgemma_cli.chat.start_engine import explain_engine, start_engine
from localgemma_cli.documents import failure_reason
from localgemma_cli.environment import Streams, expand_home
from localgemma_cli.errors import BadRowsError, InterruptedAnswer, LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.own_models import own_model
from localgemma_cli.options import Options
from localgemma_cli.prompt_template import PromptTemplate, missing_field, parse_template
from localgemma_cli.render.progress import show_progress
from localgemma_cli.sampling import Sampling, sampling_for

_UNSTABLE = ("memory", "reasons", "warnings")  # of a plan: they do not change an answer
_TERMINATED = 128 + signal.SIGTERM  # as a shell reports it


@dataclass(frozen=True)
class BatchRun:
    """`places`: where each option's value comes from; `processes`: how many share a local model's layers."""

    streams: Streams
    options: Options
    places: Mapping[str, str]
    processes: int = 1

    def run(self, path: str) -> None:
        """Answer the rows of the file at `path`. BadRowsError if any has no answer."""
        options = self.options
        if options.resume and options.output == "-":
            raise UsageError("--resume needs a file.", "Name it with -o.")
        file, size = self._open_input(path)
        records = Records(file, format_of_input(path, options.input_format))
        defaults = self._row_defaults(records)
        out = None if options.output == "-" else ResultsFile(options.output, resume=options.resume)
        engine = EngineChoice(options, self.places, self.streams.say, self.processes).first()
        explain_engine(engine, self.streams, options)
        key = _identify(engine, options)
        rows = ReadAhead(make_rows(records, defaults))
        resumed = skip_answered(rows, out, key) if out and options.resume else Resumed()
        results = out or StreamResults(self.streams.stdout)
        if size is None or resumed.again or rows.wait(None):
            self._answer(rows, results, engine, key, resumed, size)
        if out:
            out.close()
        if resumed.tally.failed:
            raise BadRowsError(
                f"{resumed.tally.failed} of {resumed.tally.rows} rows failed.",
                'The result of each has an "error".',
            )
