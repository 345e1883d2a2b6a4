"""Conversations as files: JSON Lines, the OpenAI `messages` form, and Markdown; written and read back."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args

from localgemma_cli.conversation import Conversation, FinishReason, Message, Role, Turn
from localgemma_cli.errors import UsageError
from localgemma_cli.text import parse_json, repair_surrogates

Form = Literal["jsonl", "json", "markdown"]
FORMS: Mapping[str, Form] = {".jsonl": "jsonl", ".json": "json", ".md": "markdown"}
_NAMES: Mapping[Role, str] = {"system": "System", "user": "You", "assistant": "Gemma"}
_MARK = re.compile(r"^<!-- localgemma conversation (\d+) -->$", re.MULTILINE)


def form_of(name: str) -> Form:
    """By the file's ending; UsageError for another."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    if ending not in FORMS:
        raise UsageError(
            f"{name!r} does not say which form it is to have.", f"End it in one of: {', '.join(FORMS)}."
        )
    return FORMS[ending]


def written(conversation: Conversation, form: Form) -> str:
    match form:
        case "json":
            return json.dumps({"messages": _objects(conversation)}, ensure_ascii=False, indent=2) + "\n"
        case "jsonl":
            return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in _objects(conversation))
        case "markdown":
            return _markdown(conversation)


def read(text: str, form: Form) -> Conversation:
    """UsageError where `text` is not of that form."""
    if form == "markdown":
        return _conversation(_markdown_messages(text))
    try:
        values = (
            parse_json(text) if form == "json" else [parse_json(x) for x in text.split("\n") if x.strip()]
        )
    except ValueError as error:
        raise _unreadable(f"it is not JSON ({error})") from None
    if isinstance(values, Mapping):
        values = values.get("messages")
    if not isinstance(values, list):
        raise _unreadable("it has no list of messages")
    return _conversation([_message(value) for value in values])


def _objects(conversation: Conversation) -> list[dict[str, object]]:
    """In the OpenAI form; `finish_reason` is an addition, where an answer did not come to its own end."""
    objects: list[dict[str, object]] = []
    if conversation.system:
        objects.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        objects.append({"role": "user", "content": turn.question.content})
        cut = {} if turn.finish_reason == "stop" else {"finish_reason": turn.finish_reason}
        objects.append({"role": "assistant", "content": turn.answer.content, **cut})
    return objects


def _message(value: object) -> tuple[Role, str, FinishReason]:
    role, content, reason = (
        (value.get("role"), value.get("content"), value.get("finish_reason", "stop"))
        if isinstance(value, Mapping)
        else (None, None, None)
    )
    if role not in get_args(Role) or not isinstance(content, str):
        raise _unreadable("a message is not a role (system, user or assistant) and a text")
    return (
        cast(Role, role),
        repair_surrogates(content),
        cast(FinishReason, reason if reason in get_args(FinishReason) else "stop"),
    )


def _conversation(messages: Sequence[tuple[Role, str, FinishReason]]) -> Conversation:
    """A system text first if at all, then questions and answers by turns."""
    system = messages[0][1] if messages and messages[0][0] == "system" else None
    rest = messages[1:] if system is not None else messages
    roles = [role for role, _, _ in rest]
    if roles != ["user", "assistant"] * (len(rest) // 2):
        raise _unreadable("user and assistant do not take turns, or the last question has no answer")
    pairs = zip(rest[::2], rest[1::2], strict=True)
    turns = (Turn(Message("user", q[1]), Message("assistant", a[1]), a[2]) for q, a in pairs)
    return Conversation(system, tuple(turns))


def _markdown(conversation: Conversation) -> str:
    """Headings for people; the comments before them carry a number that no text contains, to be read back."""
    texts = [str(each["content"]) for each in _objects(conversation)]
    number = next(n for n in range(len(texts) + 1) if not any(f" {n} -->" in text for text in texts))
    lines = [f"<!-- localgemma conversation {number} -->\n"]
    for each, text in zip(_objects(conversation), texts, strict=True):
        reason = each.get("finish_reason", "stop")
        role = cast(Role, each["role"])
        lines.append(f"<!-- {role} {reason} {number} -->\n## {_NAMES[role]}\n\n{text}\n")
    return "\n".join(lines)


def _markdown_messages(text: str) -> list[tuple[Role, str, FinishReason]]:
    mark = _MARK.match(text)
    if not mark:
        raise _unreadable("it was not exported by localgemma")
    pattern = rf"^<!-- (\w+) (\w+) {mark[1]} -->\n## \w+\n\n"
    parts = re.split(pattern, text, flags=re.MULTILINE)[1:]
    found = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [
        _message(
            {
                "role": role,
                "finish_reason": reason,
                "content": body[:-2] if index * 3 + 3 < len(parts) else body[:-1],
            }
        )
        for index, (role, reason, body) in enumerate(found)
    ]


def _unreadable(why: str) -> UsageError:
    return UsageError(
        f"That is no conversation: {why}.", "Give a file that `localgemma history export` wrote."
    )
