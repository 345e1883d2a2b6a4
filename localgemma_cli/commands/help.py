"""Help as plain text: examples first, options under headings, readable in 40 columns.

Typer has headings in its rich help only, which takes twice as long.
"""

import re
from shutil import get_terminal_size
from typing import Any

from typer.core import TyperCommand, TyperGroup

from localgemma_cli.commands.light_values import convert_lightly
from localgemma_cli.options import OPTION_GROUPS

_NARROW = 60  # columns; in less, an option's text goes below it instead of beside it
_WIDEST = 80
_COMMANDS = (
    ("localgemma batch", "Answer every row of a file or a pipe; a run that was stopped can be resumed."),
    ("localgemma plan", "Show what would run here, and whether it fits."),
    ("localgemma models", "List, download and remove models."),
    ("localgemma prompts", "Save prompts for --prompt; list, show and remove them."),
    ("localgemma prompt", "Print the exact text and ids that a model receives."),
    ("localgemma history", "List, show, search and export saved conversations."),
    ("localgemma bench", "Measure speed and memory on this machine."),
    ("localgemma score", "Print the perplexity of texts under a model."),
    ("localgemma serve", "Serve a model to other programs over OpenAI's API."),
    ("localgemma ps", "List the models that --keep-alive keeps loaded."),
    ("localgemma stop", "Free the models that --keep-alive keeps loaded."),
    ("localgemma config", "Show or edit the defaults of the options."),
    ("localgemma --install-completion", "Complete commands, models and options with Tab in your shell."),
)
_LAST = (
    "Put -- before a prompt that begins with one of these words. Every option above has a variable"
    " LOCALGEMMA_… and a key in config.toml."
)


def context_settings() -> dict[str, Any]:
    """Click's settings for every command."""
    width = max(20, min(get_terminal_size().columns, _WIDEST) - 2)
    return {"help_option_names": ["-h", "--help"], "terminal_width": width}


class GroupedCommand(TyperCommand):
    """Lists options under the headings of `options.py`, in that order."""

    def get_params(self, ctx: Any) -> list[Any]:
        return convert_lightly(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """A required argument as NAME, which Typer writes as {NAME}."""
        return [re.sub(r"^\{(.+)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *OPTION_GROUPS)}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                if is_argument := param.param_type_name == "argument":
                    record = (record[0].split(" <")[0], record[1])  # without Python's name for its type
                usual = "Arguments" if is_argument else "Other options"
                sections.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(record)
        if not any(sections[name] for name in OPTION_GROUPS):
            sections["Options"] = sections.pop("Other options", [])
        for heading, rows in sections.items():
            if not rows:
                continue
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=column(formatter.width))


class CommandGroup(TyperGroup):
    """Lists its commands with whole sentences, which Typer would shorten."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows, col_max=column(formatter.width))


class ChatCommand(GroupedCommand):
    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path.strip(), " ".join(self.collect_usage_pieces(ctx)))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Other commands"):
            formatter.write_dl(_COMMANDS, col_max=column(formatter.width))
        formatter.write_paragraph()
        formatter.write_text(_LAST)


def column(width: int) -> int:
    """The greatest width of the left column."""
    return 30 if width >= _NARROW else 4
