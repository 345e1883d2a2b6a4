"""The measuring process: reads a pickled (function, arguments), writes a pickled result."""

import os
import pickle
import sys
from importlib import import_module
from pathlib import Path
from threading import Thread

from localgemma_cli.bench.subprocess_runner import Failure
from localgemma_cli.errors import LocalGemmaError


def main(task: Path, result: Path) -> None:
    function, arguments = pickle.loads(task.read_bytes())
    module, _, name = function.partition(":")
    try:
        value = getattr(import_module(module), name)(*arguments)
    except LocalGemmaError as error:
        value = Failure(type(error), error.message, error.hint)
    result.write_bytes(pickle.dumps(value))


def _end_with_parent() -> None:
    """Exit when standard input closes, because the parent has ended."""
    os.read(0, 1)  # not sys.stdin, whose lock the interpreter needs at exit
    os._exit(1)


if __name__ == "__main__":
    Thread(target=_end_with_parent, daemon=True).start()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
