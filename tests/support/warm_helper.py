"""The helper of warm_start.py: imports PyTorch and transformers, then forks the program for each request."""

import fcntl
import gc
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import termios
from typing import Any


def serve(requests: socket.socket) -> None:
    """Until the tests' process has ended; each answer is the process id of a child that it inherits."""
    while True:
        data, streams, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not data:
            return
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                become_the_program(json.loads(data), streams)
            os.write(writing, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)  # from here on the child is that of the tests' process
        requests.send(os.read(reading, 100))
        for descriptor in (*streams, reading, writing):
            os.close(descriptor)


def become_the_program(request: dict[str, Any], streams: list[int]) -> None:
    """Run `python -m localgemma_cli WORDS` with standard streams, folder and variables of its own."""
    try:
        if request["terminal"]:
            os.setsid()
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        os.closerange(3, max(streams) + 100)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
            for number, (before, mode) in enumerate(((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")))
        )
        for name in [each for each in sys.modules if each.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]  # it reads its variables when it is imported
        tempfile.tempdir = None  # it is chosen once
        first = os.path.join(os.environ.get("PYTHONPATH", ""), "sitecustomize.py")  # of Program.before
        if os.path.exists(first):
            runpy.run_path(first)
        sys.argv = ["localgemma", *request["words"]]
        runpy.run_module("localgemma_cli", run_name="__main__", alter_sys=True)
    except BaseException:  # the program itself leaves by os._exit
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(70)


if __name__ == "__main__":
    import torch
    import transformers.models.gemma2.modeling_gemma2  # noqa: F401

    del torch
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
