"""The real program in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from support import warm_start

COMMAND = [sys.executable, "-m", "localgemma_cli"]

# An answer of a model in this process goes no further than this, until it is stopped: however late a Ctrl-C
# comes, it comes within the answer.
HELD = """
import inspect
import localgemma_cli.backends.answer_stream as answer_stream

events = answer_stream.answer_events


def held(*arguments):
    cancel = inspect.signature(events).bind(*arguments).arguments["cancel"]
    for number, event in enumerate(events(*arguments)):
        yield event
        if number == 100:
            cancel.wait()


answer_stream.answer_events = held
"""


@dataclass(frozen=True)
class Program:
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    cold: bool = False  # start it as a user does, without the imports of warm_start.py
    before: str = ""  # Python that its process runs first, such as HELD

    @property
    def env(self) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("LOCALGEMMA_", "HF_", "PYTEST", "TERM"))
        }
        own = {
            "LOCALGEMMA_HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder / "hub"),
            "HF_ENDPOINT": "http://127.0.0.1:9",  # the discard port: nothing answers
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "80",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return {**kept, **own, **self._before_it(), **self.environment}

    def _before_it(self) -> dict[str, str]:
        """The variable by which Python, and the helper of warm_start.py, find what runs first."""
        if not self.before:
            return {}
        folder = self.folder / "before"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(self.before)
        return {"PYTHONPATH": str(folder)}

    def __call__(self, *words: str, stdin: str | bytes | None = None) -> "subprocess.CompletedProcess[str]":
        """Run to the end; without `stdin` standard input is empty."""
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        if self.starts_warm(words):
            code, out, errors = warm_start.run(words, data, cwd=self.folder, env=self.env)
            return subprocess.CompletedProcess(words, code, out.decode("utf-8"), errors.decode("utf-8"))
        with (
            tempfile.TemporaryFile() as given
        ):  # written before the program starts, which waits only a second
            given.write(data)
            given.seek(0)
            done = subprocess.run(
                [*COMMAND, *words],
                stdin=given,
                capture_output=True,
                cwd=self.folder,
                env=self.env,
                timeout=900,
                check=False,
            )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        )

    def start(self, *words: str, stdout: int, stderr: int) -> int:
        """The process id of the program, for tests that read or stop it while it runs; its input is empty."""
        with open(os.devnull) as nothing:
            if self.starts_warm(words):
                streams = (nothing.fileno(), stdout, stderr)
                return warm_start.start(words, streams, cwd=self.folder, env=self.env)
            process = subprocess.Popen(
                [*COMMAND, *words], stdin=nothing, stdout=stdout, stderr=stderr, cwd=self.folder, env=self.env
            )
            process.returncode = 0  # the test waits for it by its number
            return process.pid

    def shell(self, line: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """What bash makes of a line, for pipes and redirections; without `stdin` standard input is ours."""
        return subprocess.run(
            ["bash", "-c", line],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env,
            timeout=900,
            check=False,
        )

    def with_environment(self, **more: str) -> "Program":
        return replace(self, environment={**self.environment, **more})

    def starts_warm(self, words: Sequence[str]) -> bool:
        return not self.cold and warm_start.can_start_warm(words, self.environment)

    @property
    def config(self) -> Path:
        folder = self.folder / "home" / "config"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def completed(program: Program, *words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    line = {"COMP_WORDS": "\n".join(["localgemma", *words]), "COMP_CWORD": str(len(words))}
    probe = (
        "import sys; from localgemma_cli.cli import run\n"
        "from localgemma_cli.environment import standard_streams\n"
        "try: run([], standard_streams())\n"
        "finally: print('LOADED', sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    env = {**program.env, **line, "_LOCALGEMMA_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True, check=False)
    *offered, loaded = done.stdout.splitlines()
    assert loaded == "LOADED []", done.stdout + done.stderr
    return [each for each in offered if each]
