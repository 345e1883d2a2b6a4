"""Style the inline Markdown of a line, cut into parts that later text cannot change."""

import re
from collections import Counter

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from rich.style import Style
from rich.text import Text

from localgemma_cli.render.theme import theme_style
from localgemma_cli.sanitize import visible

_LONGEST = 300  # characters; a mark that is not closed within them is plain text
_PIECES = re.compile(r"\\.|`+|\*+|_+|~~+|\$+|\]\(|[\[\])]|\s+|[^\\`*_~$\[\])\s]+|.", re.DOTALL)
_MARKS = re.compile(r"[\\`*_~\[\]<&!$]")
_LATEX = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}  # opening and closing marks of formulas
_LATEX_WORDS = ("\\\\", "\\(", "\\)", "\\[", "\\]")  # escapes in Markdown, but LaTeX in what models write
_STYLES = {"strong_open": "md.strong", "em_open": "md.em", "s_open": "md.s", "link_open": "md.link"}
_CLOSE = {"strong_close", "em_close", "s_close", "link_close"}

# Raw HTML and link definitions would not be displayed; they are shown as plain text.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").disable("html_inline")


def _formula_end(text: str, start: int) -> int:
    """The end of the formula that opens at `start`; 0 if there is none.

    As in pandoc, a single dollar sign opens before a non-space, and closes after a non-space and not before a
    digit, so that prices are not formulas.
    """
    opening = "$" if text[start] == "$" and text[start : start + 2] != "$$" else text[start : start + 2]
    if opening not in _LATEX or (opening == "$" and text[start + 1 : start + 2].isspace()):
        return 0
    at = start + len(opening)
    while (at := text.find(_LATEX[opening], at, start + _LONGEST)) > 0:
        end = at + len(_LATEX[opening])
        if opening != "$" or not (text[at - 1].isspace() or text[end : end + 1].isdigit()):
            return end if at > start + len(opening) else 0
        at = end
    return 0


def _may_open(text: str, start: int, piece: str) -> bool:
    """Whether `piece` opens a formula, or may do so when more of the line arrives."""
    if piece not in _LATEX or (piece == "$" and text[start + 1 : start + 2].isspace()):
        return False
    return len(text) - start <= _LONGEST or bool(_formula_end(text, start))


def _latex(state: StateInline, silent: bool) -> bool:
    """A rule for the Markdown parser: formulas, and lone formula marks, are plain text."""
    if state.src[state.pos] not in "\\$":
        return False
    end = _formula_end(state.src, state.pos)
    if not end and state.src[state.pos : state.pos + 2] in _LATEX_WORDS:
        end = state.pos + 2
    if not end:
        return False
    if not silent:
        state.pending += state.src[state.pos : end]
    state.pos = end
    return True


_PARSER.inline.ruler.before("escape", "latex", _latex)


def find_cut(text: str) -> int:
    """The end of the first part of `text`: after a space where every mark is closed; 0 if there is none."""
    code, brackets, destination = "", 0, False
    opened: Counter[str] = Counter()
    formula = 0  # where it ends
    for match in _PIECES.finditer(text):
        piece, start = match[0], match.start()
        if start < formula:
            continue
        if not code and _may_open(text, start, piece):
            formula = _formula_end(text, start) or len(text)
        elif piece.isspace():
            closed = not (code or brackets or destination or opened.total())
            if start and (closed or start > _LONGEST):
                return match.end()
        elif piece[0] == "`":
            code = "" if piece == code else code or piece
        elif code:
            continue
        elif piece[0] in "*_~":
            _count_marks(opened, text, match.start(), match.end())
        elif piece == "[":
            brackets += 1
        elif piece in ("]", "]("):
            brackets, destination = max(0, brackets - 1), piece == "]("
        elif piece == ")":
            destination = False
    return 0


def _count_marks(opened: Counter[str], text: str, start: int, end: int) -> None:
    """CommonMark's flanking rules, simplified: a run of marks opens before a word and closes after one."""
    before, after = text[start - 1 : start], text[end : end + 1]
    mark, length = text[start], end - start
    opens = bool(after) and not after.isspace()
    closes = bool(before) and not before.isspace()
    if mark == "_" and before.isalnum() and after.isalnum():
        return
    if closes and opened[mark]:
        opened[mark] = max(0, opened[mark] - length)
    elif opens and not (closes and before.isalnum() and not after.isalnum()):
        opened[mark] += length


def style_inline(text: str) -> Text:
    """The text with its marks turned into styles; a link shows its address."""
    if not _MARKS.search(text):
        return Text(text)
    body = text.rstrip()
    result, styles = Text(), [Style.null()]
    href = shown = ""
    for token in _PARSER.parseInline(body)[0].children or []:
        if token.type in _STYLES:
            styles.append(styles[-1] + theme_style(_STYLES[token.type]))
            if token.type == "link_open":
                href, shown = visible(str(token.attrs.get("href", ""))), ""
        elif token.type in _CLOSE:
            styles.pop()
            if token.type == "link_close" and href not in (shown, f"mailto:{shown}"):
                result.append(f" ({href})", style=theme_style("md.url"))
        elif token.type == "image":
            shown += token.content
            result.append(visible(token.content) or "image", style=styles[-1])
            result.append(f" ({visible(str(token.attrs.get('src', '')))})", style=theme_style("md.url"))
        else:
            content = visible(token.content)
            shown += content
            own = theme_style("md.code") if token.type == "code_inline" else Style.null()
            result.append(content, style=styles[-1] + own)
    return result.append(text[len(body) :])
