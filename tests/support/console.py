"""Runs the ```console blocks of a page in a real shell, and compares what they print with what the page says.

A line `$ command` runs (`> ` continues it), the lines below it are its output, and `...` is any text.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread

from support import warm_start
from support.program import COMMAND, Program

_MARK = "--- the end of an example ---"
_TIMEOUT = 900  # seconds
_STOP_JOBS = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"  # a server that an example started
# What `localgemma` is in an example's shell: it lets the tests start the program, which imports faster there.
_CLIENT = """\
#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
starts_warm = words[:1] in (["-m"], ["batch"]) and not any(each.startswith("/dev/fd/") for each in words)
if not starts_warm:
    os.execv({command[0]!r}, [*{command!r}, *words])
with socket.socket(socket.AF_UNIX) as tests:
    tests.connect({address!r})
    request = {{"words": words, "cwd": os.getcwd(), "env": dict(os.environ)}}
    socket.send_fds(tests, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(tests.makefile().readline()))
"""


@dataclass(frozen=True)
class Example:
    command: str
    expected: str


def examples_of(page: str) -> list[list[Example]]:
    """The examples of each block."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [[_example(part) for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]] for block in blocks]


def _example(part: str) -> Example:
    first, *rest = part.splitlines()
    command = [first]
    while rest and rest[0].startswith("> "):
        command.append(rest.pop(0)[2:])
    return Example("\n".join(command), "\n".join(rest))


def is_as_expected(expected: str, printed: str) -> bool:
    """Compares without the blank lines around both."""
    pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def run_block(program: Program, examples: list[Example]) -> list[str]:
    """What each example prints, on stdout and stderr together; the block is one shell."""
    keep = f'__code=$?; printf "\\n%s\\n" "{_MARK}"; (exit $__code)'
    script = _STOP_JOBS + "".join(f"{each.command}\n{keep}\n" for each in examples)
    printed = program.folder / "printed"
    with printed.open("w") as out:
        subprocess.run(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=program.folder,
            env={**program.env, "PATH": f"{program.folder / 'bin'}:{os.environ['PATH']}"},
            timeout=_TIMEOUT,
            check=False,
        )
    return printed.read_text(encoding="utf-8").split(f"\n{_MARK}\n")[: len(examples)]


@contextmanager
def installed_command(program: Program) -> Iterator[None]:
    """Puts `localgemma` into `bin`, the first folder of an example's PATH."""
    script = program.folder / "bin" / "localgemma"
    script.parent.mkdir()
    if not warm_start.IS_AVAILABLE:
        script.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
        script.chmod(0o755)
        yield
        return
    address = str(program.folder / "tests.sock")
    script.write_text(_CLIENT.format(python=sys.executable, command=COMMAND, address=address))
    script.chmod(0o755)
    with socket.create_server(address, family=socket.AF_UNIX) as server:
        Thread(target=_serve, args=(server,), daemon=True).start()
        yield
        server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket) -> None:
    lock = Lock()
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # the page has ended
            return
        Thread(target=_start, args=(connection, lock), daemon=True).start()


def _start(connection: socket.socket, lock: Lock) -> None:
    """Start the program once, and send its exit code."""
    with connection:
        data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        request = json.loads(data)
        with lock:  # the helper answers one at a time
            pid = warm_start.start(request["words"], streams, cwd=Path(request["cwd"]), env=request["env"])
        for descriptor in streams:
            os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{code}\n".encode())
