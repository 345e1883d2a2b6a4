"""Values that are converted without pydantic are those that Typer makes of them."""

from typing import Any

import pytest
import typer

from localgemma_cli.cli import build_app
from localgemma_cli.commands.light_values import convert_lightly
from localgemma_cli.commands.mistyped import COMMAND_NAMES

VALUES = [
    *(
        None,
        "",
        "x",
        "chat",
        "CHAT",
        "auto",
        "trim",
        "jsonl",
        "-",
        "true",
        "0",
        "7",
        "-7",
        "+7",
        " 7",
        "7 ",
        "1_0",
    ),
    *("007", "9" * 18, "9" * 19, "1.5", "-0.0", "1.", ".5", "1e3", "nan", "inf", "0.1", "1" * 16, "\u0663"),
    *(True, False, 0, 7, -1, 2**70, 1.5, 2.0, float("inf"), ("a", "b"), ["a"], (), (1,), {"a": 1}, b"x"),
]


def commands() -> dict[str, Any]:
    found: dict[str, Any] = typer.main.get_command(build_app(COMMAND_NAMES)).commands  # type: ignore[attr-defined]
    return {name: each for name, each in found.items() if not hasattr(each, "commands")}


def outcome(param: Any, ctx: Any, value: object) -> tuple[str, str]:
    """The value that a parameter makes of `value`, or its error."""
    try:
        made = param.get_runtime_param().coerce(value, param=param, ctx=ctx)
    except Exception as error:  # whatever Typer raises
        return type(error).__name__, str(error)
    return type(made).__name__, repr(made)


@pytest.mark.parametrize("name", commands())
def test_a_value_becomes_what_typer_makes_of_it(name: str) -> None:
    usual, light = commands()[name], commands()[name]
    ctx = usual.make_context(name, [], resilient_parsing=True)
    convert_lightly(light.params)
    for param, other in zip(usual.params, light.params, strict=True):
        for value in VALUES:
            assert outcome(other, ctx, value) == outcome(param, ctx, value), (param.name, value)
