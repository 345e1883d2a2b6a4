"""The real program in a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = [sys.executable, "-m", "localgemma_cli"]


@dataclass(frozen=True)
class Program:
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

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
        return {**kept, **own, **self.environment}

    def __call__(self, *words: str, stdin: str | bytes | None = None) -> "subprocess.CompletedProcess[str]":
        """Run to the end; without `stdin` standard input is empty."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [*COMMAND, *words],
            input=data if data is not None else b"",
            capture_output=True,
            cwd=self.folder,
            env=self.env,
            timeout=900,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        )

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
        return Program(self.folder, {**self.environment, **more})

    @property
    def config(self) -> Path:
        folder = self.folder / "home" / "config"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
