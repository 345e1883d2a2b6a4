"""The program that runs llama.cpp, in a process of its own: a file that crashes llama.cpp ends only this.

Reads one JSON object per line from standard input: first the parameters of the server, then requests, and
`{"cancel": true}` while one is running. Ends when standard input does. Answers with one JSON value per line:

    {"ready": true}                      the model is loaded
    {"error": "…", "missing": true}      it cannot be loaded; `missing`: xllamacpp is not installed
    [id, [byte, …]]                      a token, and its text with that of those held back before it
    [id, [byte, …], x, [[id, x], …]]     the same with log-probabilities, of the likeliest tokens too
    {"read": [cached, done, total]}      tokens of the prompt
    {"done": reason, "cached": n}        the end of an answer; `reason`: stop, length or null
    {"failed": "…"}                      the end of one that failed

Imports nothing of the package, so that it starts fast. What llama.cpp writes goes to standard error.
"""

import contextlib
import json
import math
import os
import queue
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

Requests = queue.SimpleQueue[tuple[dict[str, Any], threading.Event]]
_LONGEST_SOCKET = 100  # bytes; the path of a Unix socket is limited to 104 on macOS and 108 on Linux


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where a terminal's Ctrl-C reaches every process
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: Requests = queue.SimpleQueue()
    first = sys.stdin.buffer.readline()
    if not first:
        return
    try:
        import xllamacpp

        server = open_server(xllamacpp, json.loads(first))
    except ImportError as error:
        _write(out, {"error": str(error), "missing": error.name == "xllamacpp"})
        return
    except Exception as error:  # whatever xllamacpp raises
        _write(out, {"error": str(error)})
        return
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    _write(out, {"ready": True})
    while True:
        _answer(server, *requests.get(), out)


def _listen(requests: Requests) -> None:
    cancel = threading.Event()  # of the latest request
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "cancel" in request:
            cancel.set()
        else:
            cancel = threading.Event()
            requests.put((request, cancel))
    os._exit(0)  # the program that started this one has ended


def _write(out: BinaryIO, value: object) -> None:
    out.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
    out.flush()


def open_server(xllamacpp: Any, values: dict[str, Any]) -> Any:
    """An `xllamacpp.Server`; `values`: by the names of its parameters, such as `model.path`."""
    params = xllamacpp.CommonParams()
    for name, value in values.items():
        *parents, last = name.split(".")
        owner = params
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, value)
    with _closed_listener(params):
        return xllamacpp.Server(params)


@contextlib.contextmanager
def _closed_listener(params: Any) -> Iterator[None]:
    """Make the HTTP listener that every Server opens unreachable: requests are passed in this process.

    It is a Unix socket in a private folder, which is removed as soon as the server is open. Windows has a
    random port on this machine with a random key instead.
    """
    if sys.platform == "win32":
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.api_keys = [secrets.token_urlsafe(32)]
        yield
        return
    parent = None if len(os.fsencode(tempfile.gettempdir())) < _LONGEST_SOCKET - 30 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="localgemma-", dir=parent) as folder:  # mode 0700
        params.hostnames = [f"{folder}/s.sock"]
        yield


def _answer(server: Any, request: dict[str, Any], cancel: threading.Event, out: BinaryIO) -> None:
    end: dict[str, Any] = {"done": None, "cached": 0}

    def receive(chunk: dict[str, Any]) -> bool:
        """Called for every chunk; True stops llama.cpp."""
        if "error" in chunk:
            end["failed"] = str(chunk["error"].get("message", "no reason was given"))
            return True
        if progress := chunk.get("prompt_progress"):
            end["cached"] = progress["cache"]
            _write(out, {"read": [progress["cache"], progress["processed"], progress["total"]]})
            return cancel.is_set()
        for choice in chunk["choices"]:
            for entry in (choice["logprobs"] or {}).get("content", ()):
                _write(out, [entry["id"], entry["bytes"], *_logprobs(entry)])
            end["done"] = choice["finish_reason"] or end["done"]
        return cancel.is_set()

    try:
        server.handle_completions(request, receive)
    except Exception as error:  # whatever xllamacpp raises
        end["failed"] = str(error)
    _write(out, {"failed": end["failed"]} if "failed" in end else end)


def _logprobs(entry: dict[str, Any]) -> Iterator[object]:
    """Nothing where only the id was asked for: one probability after sampling, which has another name."""
    if "logprob" in entry:
        yield entry["logprob"]
        yield [[each["id"], each["logprob"]] for each in entry["top_logprobs"]]
    elif len(entry["top_probs"]) > 1:
        yield _log(entry["prob"])
        yield [[each["id"], _log(each["prob"])] for each in entry["top_probs"]]


def _log(probability: float) -> float:
    return math.log(max(probability, sys.float_info.min))


if __name__ == "__main__":
    main()
