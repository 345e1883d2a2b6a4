"""How one option is declared: its flags, help, and names in the environment and in config.toml."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import typer


@dataclass(frozen=True)
class OptionSpec:
    """How one option is written.

    A `local_only` option does not apply to a server's model. An `is_eager` one is read before the others.
    """

    flags: tuple[str, ...]
    help: str
    commands: tuple[str, ...]
    group: str | None
    metavar: str | None
    local_only: bool
    is_eager: bool

    @property
    def key(self) -> str:
        """Its name in config.toml, and in messages after `--`."""
        return self.flags[0].split("/")[0].lstrip("-")

    @property
    def variable(self) -> str:
        return variable_of(self.key)

    def as_typer(self, callback: Callable[..., Any] | None = None) -> Any:
        return typer.Option(
            *self.flags,
            callback=callback,
            is_eager=self.is_eager,
            help=self.help,
            metavar=self.metavar,
            envvar=self.variable,
            show_envvar=False,
            show_default=False,
            rich_help_panel=self.group,
        )


def variable_of(key: str) -> str:
    """The environment variable of an option: LOCALGEMMA_TOP_P for top-p."""
    return "LOCALGEMMA_" + key.upper().replace("-", "_")


def declare_option(
    *flags: str,
    help: str,
    to: str | tuple[str, ...] = "chat",
    default: object = None,
    group: str | None = None,
    metavar: str | None = None,
    local_only: bool = False,
    is_eager: bool = False,
) -> Any:
    """A field of `Options`; `to` names the commands that have it."""
    commands = (to,) if isinstance(to, str) else to
    spec = OptionSpec(flags, help, commands, group, metavar, local_only, is_eager)
    return field(default=default, metadata={"spec": spec})
