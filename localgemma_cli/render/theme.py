"""Styles of answers, in the terminal's sixteen colours without backgrounds: readable on light and dark."""

from rich.style import Style

_STYLES = {
    "md.title": Style(bold=True, underline=True),
    "md.heading": Style(bold=True),
    "md.mark": Style(dim=True),  # bullets, bars, rules and fences
    "md.code": Style(color="cyan"),
    "md.strong": Style(bold=True),
    "md.em": Style(italic=True),
    "md.s": Style(strike=True),
    "md.link": Style(underline=True),
    "md.url": Style(dim=True),
    "md.thinking": Style(dim=True),
}
CODE_THEME = "ansi_dark"  # pygments' style with the sixteen colours and no background


def theme_style(name: str) -> Style:
    return _STYLES[name]
