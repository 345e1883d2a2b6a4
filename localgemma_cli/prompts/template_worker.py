"""The program that renders chat templates, in a process that can be killed at any moment.

A template is code from outside: here it has a limited processor time and memory. Reads one JSON object per
line and answers with one; imports nothing of the package. The package calls `compiled` directly for its
built-in templates only.
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

CPU_SECONDS = 1.0  # a prompt needs some milliseconds; and
_BYTES_PER_SECOND = 10e6  # added for a long conversation
_MEMORY_BYTES = 192 << 20  # above the memory at its start, and
_MEMORY_PER_BYTE = 32  # added for each byte of a request
_TEXT_CHARACTERS = 1 << 20  # of the output, and
_TEXT_PER_CHARACTER = 8  # added for each character of a request
_MESSAGE_CHARACTERS = 300


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; a prompt ignores it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


class _Dict:
    """Transformers' `dict`, restricted to calls and `fromkeys`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """Transformers' `namespace`, without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a namespace can have an attribute `self`
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
        raise SecurityError(f"a namespace cannot have {name!r}")


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
    """Compile as transformers' `apply_chat_template` does, so that the text is the same."""
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
        request = json.loads(line)
        longest = _TEXT_CHARACTERS + _TEXT_PER_CHARACTER * len(line)
        pieces: list[str] = []
        for piece in compiled(request["template"]).generate(**request["variables"]):
            longest -= len(piece)
            if longest < 0:
                return {"error": "it writes too much text", "exceeds": True}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "it needs too much memory", "exceeds": True}
    except RecursionError:
        return {"error": "it calls itself endlessly", "exceeds": True}
    except Exception as error:  # a template may raise anything
        what = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        return {"error": what[:_MESSAGE_CHARACTERS], "line": getattr(error, "lineno", None)}


def _address_space() -> int | None:
    """Bytes of address space in use; None on systems without /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * 4096
    except OSError:
        return None


def _limit_memory(base: int | None, asked: int) -> None:
    if base is not None and sys.platform != "win32":
        import resource

        most = base + _MEMORY_BYTES + _MEMORY_PER_BYTE * asked
        _, hardest = resource.getrlimit(resource.RLIMIT_AS)  # an outer limit may be lower
        within = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
        resource.setrlimit(resource.RLIMIT_AS, (within, hardest))


def _limit_time(seconds: float) -> None:
    """Of processor time; the system ends the process, even inside a library call that does not return."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    base = _address_space()
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
