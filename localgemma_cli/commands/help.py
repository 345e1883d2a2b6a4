"""Help as plain text: examples first, options under headings, and readable in 40 columns.

Typer has headings in its rich form only, which takes twice as long to show.
"""

from shutil import get_terminal_size
from typing import Any

from typer.core import TyperCommand, TyperGroup

from localgemma_cli.options import GROUPS

_NARROW = 60  # columns; below, what an option does stands under it instead of beside it
_WIDEST = 80
_COMMANDS = (
    ("localgemma plan", "What would run here, and whether it fits."),
    ("localgemma models", "The models known by name and what is on disk; pull, rm."),
    ("localgemma prompt", "The exact text and ids that a model would be given."),
    ("localgemma history", "The saved conversations."),
    ("localgemma bench", "How fast it is on this machine, measured."),
    ("localgemma --install-completion", "Complete commands, models and options with Tab in your shell."),
)
_LAST = (
    "A prompt that begins with one of these words goes after --. Every option has a variable LOCALGEMMA_…"
    " and a key in config.toml."
)


def context_settings() -> dict[str, Any]:
    """Of every command."""
    width = max(20, min(get_terminal_size().columns, _WIDEST) - 2)
    return {"help_option_names": ["-h", "--help"], "terminal_width": width}


class GroupedCommand(TyperCommand):
    """Options under the headings that `options.py` gives them, in its order of headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *GROUPS)}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                if is_argument := param.param_type_name == "argument":
                    record = (record[0].split(" <")[0], record[1])  # without Python's name of its type
                usual = "Arguments" if is_argument else "Other options"
                sections.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(record)
        if not any(sections[name] for name in GROUPS):
            sections["Options"] = sections.pop("Other options", [])
        for heading, rows in sections.items():
            if not rows:
                continue
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=column(formatter.width))


class CommandGroup(TyperGroup):
    """Its commands in whole sentences, which Typer would cut."""

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
    """How wide the left column may be."""
    return 30 if width >= _NARROW else 4
