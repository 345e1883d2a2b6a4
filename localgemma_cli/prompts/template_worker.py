"""Chat templates rendered apart: a program of its own, which may be ended at any moment.

A template is code from outside. Here it has so many seconds of the processor and so many bytes, whatever it
does, and the program that asked goes on. Reads a JSON object per line, answers with one; imports nothing of
the package. Where it runs `compiled` itself, the template is one of the package's own.
"""

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CPU_SECONDS = 1.0  # a prompt takes some milliseconds; and
_BYTES_PER_SECOND = 10e6  # more for a long conversation
_MEMORY_BYTES = 192 << 20  # beyond what it starts with, and
_MEMORY_PER_BYTE = 32  # more for each byte that is asked
_TEXT_CHARACTERS = 1 << 20  # of the prompt, and
_TEXT_PER_CHARACTER = 8  # more for each that is asked
_MESSAGE_CHARACTERS = 300


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; to a prompt it is nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


class _Dict:
    """Transformers' `dict`: no more of the class than this."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """Transformers' `namespace`: nothing with an underscore is kept in it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a namespace may have a `self`
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _require_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """As transformers' `apply_chat_template` does it, so that the text is the same."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    return environment.from_string(template)


def _answer(line: str) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        longest = _TEXT_CHARACTERS + _TEXT_PER_CHARACTER * len(line)
        pieces: list[str] = []
        for piece in compiled(asked["template"]).generate(**asked["variables"]):
            longest -= len(piece)
            if longest < 0:
                return {"error": "it writes too much text", "exceeds": True}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "it needs too much memory", "exceeds": True}
    except RecursionError:
        return {"error": "it calls itself without end", "exceeds": True}
    except Exception as error:  # a template may raise anything
        what = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        return {"error": what[:_MESSAGE_CHARACTERS], "line": getattr(error, "lineno", None)}


def _started_with() -> int | None:
    """Bytes of address space, where the system tells and keeps a limit."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * 4096
    except OSError:
        return None


def _limit_memory(base: int | None, asked: int) -> None:
    if base is not None and sys.platform != "win32":
        import resource

        most = base + _MEMORY_BYTES + _MEMORY_PER_BYTE * asked
        _, hardest = resource.getrlimit(resource.RLIMIT_AS)  # a smaller one may be set from outside
        within = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
        resource.setrlimit(resource.RLIMIT_AS, (within, hardest))


def _limit_time(seconds: float) -> None:
    """Of the processor; the system itself ends the process, also where a library works without end."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    base = _started_with()
    out = sys.stdout
    out.write("{}\n")  # ready
    out.flush()
    for line in sys.stdin:
        _limit_memory(base, len(line))
        _limit_time(CPU_SECONDS + len(line) / _BYTES_PER_SECOND)
        answer = _answer(line)
        _limit_time(0)
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
