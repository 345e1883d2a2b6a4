"""Renders chat templates in a process of its own, with limits on time, memory and output."""

import functools
import json
import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from jinja2 import TemplateError

from localgemma_cli.documents import failure_reason
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.prompts.template_worker import CPU_SECONDS, compiled

_CHILD = Path(__file__).with_name("template_worker.py")
_START_SECONDS = 60.0
_WALL_SECONDS = 10.0  # if its processor time cannot be limited, or the machine is busy
_ANSWER_BYTES = 16 << 20
_ANSWER_PER_BYTE = 100
_TEMPLATE_CHARACTERS = 1 << 20


class TemplateFailed(Exception):
    """Why a template failed, in a few words; `line`: the line of the template, if known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class TemplateExceeds(TemplateFailed):
    """The template exceeded its limits."""


def render_trusted(template: str, variables: Mapping[str, Any]) -> str:
    """Render a built-in template in this process; raises TemplateFailed if it refuses the messages."""
    try:
        return compiled(template).render(**variables)
    except TemplateError as error:
        raise TemplateFailed(str(error)) from None


def render_bounded(template: str, variables: Mapping[str, Any]) -> str:
    """Render a template from outside; raises TemplateFailed for any error, TemplateExceeds for its limits."""
    if len(template) > _TEMPLATE_CHARACTERS:
        raise TemplateFailed("it is too long")
    return _renderer().render(template, variables)


@functools.cache
def _renderer() -> "_Renderer":
    return _Renderer()


class _Renderer:
    """Starts its process with the first template, and again after it had to be killed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        request = json.dumps({"template": template, "variables": dict(variables)})
        with self._lock:
            try:
                answer = self._ask(request)
            except BaseException:
                self._end()  # a late answer must not be read as the next one
                raise
        if "text" not in answer:
            kind = TemplateExceeds if answer.get("exceeds") else TemplateFailed
            raise kind(str(answer.get("error")), answer.get("line"))
        return str(answer["text"])

    def _ask(self, request: str) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin  # a pipe
        with suppress(OSError):  # it has ended: the answer is empty
            process.stdin.write(request + "\n")
            process.stdin.flush()
        longest = _ANSWER_BYTES + _ANSWER_PER_BYTE * len(request)
        line = _line(process, longest, _WALL_SECONDS + len(request) / 1e6)
        if not line.endswith("\n"):
            raise TemplateExceeds(_why(process.wait(), bool(line)))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> "subprocess.Popen[str]":
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                start_new_session=True,  # Ctrl-C in the terminal must not reach it
            )
        except OSError as error:
            raise _no_process(failure_reason(error)) from error
        self._process = process
        weakref.finalize(self, process.kill)
        if not _line(process, 100, _START_SECONDS):
            raise _no_process(f"exit code {process.wait()}")
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _line(process: "subprocess.Popen[str]", longest: int, seconds: float) -> str:
    """The next line; incomplete if the time is over."""
    assert process.stdout  # a pipe
    clock = Timer(seconds, process.kill)
    clock.daemon = True
    clock.start()
    try:
        return process.stdout.readline(longest)
    finally:
        clock.cancel()


def _why(code: int, wrote: bool) -> str:
    if wrote:
        return "it writes too much text"
    if code in (-9, -27):  # by the timer, or by the system (SIGPROF)
        return f"it takes more than {CPU_SECONDS:g} s of processor time"
    return "its process ended"


def _no_process(why: str) -> LocalGemmaError:
    return LocalGemmaError(
        f"Cannot start a process for the chat template: {why}.",
        "Close other programs, or use a built-in form, such as --template gemma.",
    )
