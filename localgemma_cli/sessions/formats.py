"""File formats of conversations: JSON Lines, the OpenAI `messages` JSON, and Markdown; write and parse."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Literal, cast, get_args

from localgemma_cli.conversation import Conversation, FinishReason, Message, Role, Turn
from localgemma_cli.errors import UsageError
from localgemma_cli.text import parse_json, repair_surrogates

Format = Literal["jsonl", "json", "markdown"]
FORMATS: Mapping[str, Format] = {".jsonl": "jsonl", ".json": "json", ".md": "markdown"}
_NAMES: Mapping[Role, str] = {"system": "System", "user": "You", "assistant": "Gemma"}
_MARK = re.compile(r"<!-- localgemma conversation ([0-9]+) -->(\r?)(?:\n|\Z)")
_NUMBER = re.compile(r" ([0-9]+) -->")


def format_of(name: str) -> Format:
    """The format of a file name's extension. Raises UsageError for an unknown one."""
    extension = name[name.rfind(".") :].lower() if "." in name else ""
    if extension not in FORMATS:
        raise UsageError(
            f"{name!r} has no extension of a supported format.", f"Use one of: {', '.join(FORMATS)}."
        )
    return FORMATS[extension]


def format_conversation(conversation: Conversation, format: Format) -> str:
    """The text of a file; `parse_conversation` restores the conversation, without token ids."""
    match format:
        case "json":
            head = {"title": conversation.title} if conversation.title else {}
            value = {**head, "messages": _objects(conversation)}
            return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        case "jsonl":
            lines = _objects(conversation)
            if conversation.title:  # in the first message, since each line is a message
                lines[:1] = [{**(lines[0] if lines else {}), "title": conversation.title}]
            return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
        case "markdown":
            return _markdown(conversation)


def format_for_display(conversation: Conversation) -> str:
    """Markdown to read, with a heading per message; it cannot be parsed back."""
    title = [f"# {conversation.title}\n"] if conversation.title else []
    messages = (f"## {_NAMES[role]}\n\n{text}\n" for role, text, _ in _messages(conversation))
    return "\n".join([*title, *messages])


def parse_conversation(text: str, format: Format) -> Conversation:
    """The conversation in the text of a file.

    Raises UsageError if `text` is not a conversation in that format.
    """
    if format == "markdown":
        return _parse_markdown(text)
    try:
        value = (
            parse_json(text) if format == "json" else [parse_json(x) for x in text.split("\n") if x.strip()]
        )
    except ValueError as error:
        raise _invalid(f"it is not JSON ({error})") from None
    messages, title = _messages_and_title(value)
    if not isinstance(messages, list):
        raise _invalid("it has no list of messages")
    return _conversation([_message(each) for each in messages], title)


def _messages_and_title(value: object) -> tuple[object, object]:
    """The messages and the title, which is next to them or in the first one."""
    if isinstance(value, Mapping):
        return value.get("messages"), value.get("title")
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(value, list) and isinstance(first, Mapping) and "title" in first:
        return value[1:] if len(first) == 1 else value, first["title"]
    return value, None


def _messages(conversation: Conversation) -> list[tuple[Role, str, FinishReason]]:
    messages: list[tuple[Role, str, FinishReason]] = []
    if conversation.system:
        messages.append(("system", conversation.system, "stop"))
    for turn in conversation.turns:
        messages.append(("user", turn.question.content, "stop"))
        messages.append(("assistant", turn.answer.content, turn.finish_reason))
    return messages


def _objects(conversation: Conversation) -> list[dict[str, object]]:
    """The OpenAI form, with an added `finish_reason` for answers that did not end by themselves."""
    return [
        {"role": role, "content": text, **({} if reason == "stop" else {"finish_reason": reason})}
        for role, text, reason in _messages(conversation)
    ]


def _message(value: object) -> tuple[Role, str, FinishReason]:
    if not isinstance(value, Mapping):
        raise _invalid("a message is not an object with role and content")
    role, content, reason = value.get("role"), value.get("content"), value.get("finish_reason")
    if role not in get_args(Role) or not isinstance(content, str):
        raise _invalid("a message needs a role (system, user or assistant) and a text as its content")
    ended = reason if role == "assistant" and reason in get_args(FinishReason) else "stop"
    return cast(Role, role), repair_surrogates(content), cast(FinishReason, ended)


def _conversation(messages: Sequence[tuple[Role, str, FinishReason]], title: object = None) -> Conversation:
    """Build a conversation from an optional system text, then questions and answers in turn."""
    system = messages[0][1] if messages and messages[0][0] == "system" else None
    rest = messages[1:] if system is not None else messages
    roles = [role for role, _, _ in rest]
    if roles != ["user", "assistant"] * (len(rest) // 2):
        raise _invalid("user and assistant do not alternate, or the last question has no answer")
    pairs = zip(rest[::2], rest[1::2], strict=True)
    turns = (Turn(Message("user", q[1]), Message("assistant", a[1]), a[2]) for q, a in pairs)
    named = repair_surrogates(title) if isinstance(title, str) else None
    return Conversation(system or None, tuple(turns), named or None)


def _markdown(conversation: Conversation) -> str:
    """Headings to read, and comments to parse: their number occurs in no text, so none can imitate them."""
    messages = _messages(conversation)
    title = conversation.title or ""
    texts = (title, *(text for _, text, _ in messages))
    used = {number for text in texts for number in _NUMBER.findall(text)}
    number = next(each for each in count() if str(each) not in used)
    lines = [f"<!-- localgemma conversation {number} -->\n", *([f"# {title}\n"] if title else [])]
    for role, text, reason in messages:
        lines.append(f"<!-- {role} {reason} {number} -->\n## {_NAMES[role]}\n\n{text}\n")
    return "\n".join(lines)


def _parse_markdown(text: str) -> Conversation:
    """Keep the line ends, unless an editor has changed all of them to those of Windows."""
    mark = _MARK.match(text)
    if not mark:
        raise _invalid("it was not exported by localgemma")
    if mark[2]:
        text = text.replace("\r\n", "\n")
    pattern = rf"^<!-- (\w+) (\w+) {mark[1]} -->\n## \w+\n\n"
    head, *parts = re.split(pattern, text, flags=re.MULTILINE)
    head = _without_end(head.partition("\n")[2].removeprefix("\n"), last=not parts)
    messages = []
    for at in range(0, len(parts), 3):
        body = _without_end(parts[at + 2], last=at + 3 == len(parts))
        messages.append(_message({"role": parts[at], "finish_reason": parts[at + 1], "content": body}))
    return _conversation(messages, head[2:] if head.startswith("# ") else None)


def _without_end(part: str, *, last: bool) -> str:
    """Remove the newline after a part, and the empty line that follows each part but the last."""
    part = part.removesuffix("\n")
    return part if last else part.removesuffix("\n")


def _invalid(why: str) -> UsageError:
    return UsageError(
        f"The file is not a conversation: {why}.", "Use a file that was written by: localgemma history export"
    )
