"""The colours of answers: the terminal's own sixteen, readable on light and dark, and never a background."""

from rich.style import Style

_STYLES = {
    "md.title": Style(bold=True, underline=True),
    "md.heading": Style(bold=True),
    "md.mark": Style(dim=True),  # bullets, bars, rules and fences: what is not the answer's own words
    "md.code": Style(color="cyan"),
    "md.strong": Style(bold=True),
    "md.em": Style(italic=True),
    "md.s": Style(strike=True),
    "md.link": Style(underline=True),
    "md.url": Style(dim=True),
    "md.thinking": Style(dim=True),
}
CODE_THEME = "ansi_dark"  # pygments' names for the sixteen colours, without a background of its own


def style(name: str) -> Style:
    return _STYLES[name]
