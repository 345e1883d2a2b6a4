"""A report for people: one column per row of the report, one line per figure, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from localgemma_cli.bench.job import CHAT_TURNS
from localgemma_cli.bench.report import AnswerFigures, ChatFigures, LoadFigures, Row

if TYPE_CHECKING:  # rich takes a tenth of a second to import, and `--json` needs none of it
    from rich.table import Table

_Line = tuple[str, list[str]]
Value = TypeVar("Value")


def make_table(rows: Sequence[Row], bandwidth: float) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("", no_wrap=True)
    for row in rows:
        grid.add_column(row.label, justify="right", overflow="fold")
    for heading, lines in _sections(rows, bandwidth):
        grid.add_row(Text(heading, style="bold"))
        for name, cells in lines:
            grid.add_row(f"  {name}", *cells)
    return grid


def _sections(rows: Sequence[Row], bandwidth: float) -> Iterator[tuple[str, list[_Line]]]:
    yield "loading", _shown(_load_lines([row.load for row in rows]))
    for place, figures in enumerate(rows[0].answers):
        heading = f"{figures.prompt_tokens} tokens in, {figures.new_tokens} out"
        yield heading, _shown(_answer_lines([row.answers[place] for row in rows], bandwidth))
    if chats := [row.chat for row in rows if row.chat]:
        heading = f"turn {CHAT_TURNS} of a chat, {max(chat.prompt_tokens for chat in chats)} tokens"
        yield heading, _shown(_chat_lines([row.chat for row in rows]))
    yield "from token to text", _shown(_stream_lines(rows))


def _load_lines(loads: Sequence[LoadFigures]) -> Iterator[_Line]:
    yield "first, s", [f"{load.first_seconds:.2f}" for load in loads]
    yield "second, s", [_optional(load.second_seconds, "{:.2f}".format) for load in loads]
    yield "peak on host, GB", [_gb(load.peak_host_bytes) for load in loads]
    yield "  × first column", [f"{load.peak_ratio:.2f}" for load in loads]
    yield "peak on device, GB", [_optional(load.peak_device_bytes, _gb) for load in loads]


def _answer_lines(figures: Sequence[AnswerFigures], bandwidth: float) -> Iterator[_Line]:
    yield "first token, s", [_significant(each.first_token_seconds) for each in figures]
    yield "prefill, tok/s", [_significant(each.prefill_tokens_per_second) for each in figures]
    yield "decode, tok/s", [_significant(each.decode_tokens_per_second) for each in figures]
    yield "  × first column", [f"{each.decode_ratio:.2f}" for each in figures]
    yield "read per token, GB", [_gb(each.read_bytes_per_token + each.kv_bytes_per_token) for each in figures]
    yield "bandwidth, GB/s", [_significant(each.bytes_per_second / 1e9) for each in figures]
    share = f"  of the memory's {bandwidth / 1e9:.1f}"
    yield share, [f"{each.bandwidth_share:.0%}" for each in figures]
    yield "peak on host, GB", [_gb(each.peak_host_bytes) for each in figures]
    yield "peak on device, GB", [_optional(each.peak_device_bytes, _gb) for each in figures]
    yield "  above the weights", [_gb(each.above_weights_bytes) for each in figures]
    yield "plan's estimate, GB", [_optional(each.estimate_bytes, _gb) for each in figures]
    yield "  peak / estimate", [_optional(each.estimate_share, "{:.2f}".format) for each in figures]
    yield "tokens equal", [_equal(each) for each in figures]
    yield "  margin there", [_optional(each.reference_margin, _significant) for each in figures]


def _chat_lines(chats: Sequence[ChatFigures | None]) -> Iterator[_Line]:
    def each(show: Callable[[ChatFigures], str]) -> list[str]:
        return [show(chat) if chat else "" for chat in chats]

    yield "first token, s", each(lambda chat: _significant(chat.first_token_seconds))
    yield "full prefill, s", each(lambda chat: _significant(chat.full_prefill_seconds))
    yield "  share", each(lambda chat: f"{chat.first_token_share:.2f}")


def _stream_lines(rows: Sequence[Row]) -> Iterator[_Line]:
    yield "per token, µs", [_optional(row.stream_seconds_per_token, _microseconds) for row in rows]
    yield "  of a decode step", [_optional(row.step_share, "{:.2%}".format) for row in rows]


def _shown(lines: Iterator[_Line]) -> list[_Line]:
    """Lines without the empty ones: a CPU has no device peak, a run without reference compares no tokens."""
    return [(name, cells) for name, cells in lines if any(cells)]


def _equal(figures: AnswerFigures) -> str:
    if figures.tokens_equal is None:
        return ""
    return "yes" if figures.tokens_equal else f"up to {figures.first_difference}"


def _optional(value: Value | None, show: Callable[[Value], str]) -> str:
    return "" if value is None else show(value)


def _gb(count: int) -> str:
    return _significant(count / 1e9)


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _significant(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"
