"""What each slash command does."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from shutil import get_terminal_size
from typing import Any

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.attachments import read_attachment, size
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.prompt_text import as_pasted
from localgemma_cli.chat.slash import slash_commands as slash
from localgemma_cli.chat.slash.context_view import draw
from localgemma_cli.chat.slash.outcome import (
    Ask,
    CommandContext,
    Copy,
    Do,
    Edit,
    Outcome,
    Switch,
    counted,
    number,
    paths,
    short,
    takes,
)
from localgemma_cli.chat.slash.session_commands import export, load, save, sessions, title
from localgemma_cli.conversation import Conversation
from localgemma_cli.documents import format_value
from localgemma_cli.errors import UsageError
from localgemma_cli.render.base import Answer
from localgemma_cli.sampling import Sampling, validate_sampling
from localgemma_cli.sanitize import Block, one_line

KEYS: Mapping[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
}


def perform(session: ChatSession, facts: CommandContext, name: str, argument: str) -> Outcome:
    """Do one command; a UsageError that says what it takes where `argument` is not that."""
    if argument and not slash.COMMANDS[name].takes:
        raise takes(name)
    return _ACTIONS[name](session, facts, argument)


def _help(session: ChatSession, facts: CommandContext, argument: str) -> None:
    session.say(Block(slash.help_text(get_terminal_size().columns)))


def _new(session: ChatSession, facts: CommandContext, argument: str) -> None:
    session.fresh(Conversation(session.conversation.system), None)
    session.say("A new conversation.")


def _model(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    if argument:
        return Switch(argument)
    session.say(facts.model())
    return None


def _system(session: ChatSession, facts: CommandContext, argument: str) -> None:
    if argument:
        session.set_system(None if argument == "-" else argument)
    text = session.system
    session.say(f"System text: {text}" if text else "There is no system text.")


def _retry(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    sampling = session.settings.sampling
    for word in argument.split():
        key, equals, value = word.partition("=")
        sampling = _changed(sampling, "/retry", key, value if equals else "")
    return Ask(as_pasted(session.replaces(1)), sampling)


def _undo(session: ChatSession, facts: CommandContext, argument: str) -> None:
    removed = session.undo(number("/undo", argument))
    session.say(f"[taken back: {counted(len(removed), 'turn')}, from “{short(removed[0].question.content)}”]")


def _edit(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    count = number("/edit", argument)
    text = session.replaces(count)
    session.say(
        f"[what you send next replaces {counted(count, 'turn')}; an empty message leaves all as it is]"
    )
    return Edit(text)


def _continue(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    return Do("continue")


def _fork(session: ChatSession, facts: CommandContext, argument: str) -> None:
    before = session.recorder.session
    session.conversation = session.recorder.fork(session.conversation)
    here = session.recorder.session
    if before is None or here == before:
        session.say("Nothing is saved of this conversation, so there is nothing to keep apart.")
    else:
        session.say(f"This is conversation {here} now; {before} stays as it is.")


def _file(session: ChatSession, facts: CommandContext, argument: str) -> None:
    if not argument:
        raise takes("/file")
    if argument == "-":
        session.attachments = []
        session.say("[nothing is attached]")
        return
    found = [read_attachment(path) for path in paths(argument)]
    backend = facts.ready()
    tokens = [each.tokens(backend) for each in found]  # first: a Ctrl-C there attaches nothing
    session.attachments += found
    for each, (count, exact) in zip(found, tokens, strict=True):
        session.say(f"[attached to your next message: {one_line(each.name)}, {size(count, exact)}]")
    context = backend.context_length if backend else None
    if context and sum(count for count, _ in tokens) > context:
        session.say(f"[that exceeds the context of {context} tokens; /file - detaches it, a part may fit]")


def _show(session: ChatSession, facts: CommandContext, argument: str) -> None:
    match argument:
        case "plan":
            session.say(Block(facts.plan()))
        case "model":
            session.say(one_line(facts.model()))
        case "params":
            session.say(_parameters(session))
        case "context" | "prompt":
            if (backend := facts.loaded()) is not None:
                text = draw(session, backend) if argument == "context" else _prompt(session, backend)
                session.say(Block(text))
        case _:
            raise takes("/show")


def _set(session: ChatSession, facts: CommandContext, argument: str) -> None:
    key, _, value = argument.replace("=", " ", 1).partition(" ")
    if key == "render" and value.strip() in slash.RENDERS:
        session.render = value.strip()
    elif key:
        sampling = _changed(session.settings.sampling, "/set", key, value.strip())
        session.settings = replace(session.settings, sampling=sampling)
    session.say(_parameters(session))


def _stats(session: ChatSession, facts: CommandContext, argument: str) -> None:
    if not session.totals.answers:
        session.say("Nothing has been answered yet.")
        return
    if session.last is not None:
        _stats_of(session, session.last)
    total = session.totals
    session.say(
        f"this chat: {counted(total.answers, 'answer')}, {total.generated} tokens written,"
        f" {total.prefilled} read, {total.cached} taken from the cache"
    )


def _stats_of(session: ChatSession, answer: Answer) -> None:
    usage, timing = answer.finished.usage, answer.finished.timing
    if usage.prompt_tokens is not None:
        cached = usage.cached_prompt_tokens or 0
        session.say(
            f"last answer: {usage.completion_tokens} tokens; prompt {usage.prompt_tokens},"
            f" of which {cached} were in the cache and {usage.prompt_tokens - cached} were read"
        )
    rate = timing.decode_tokens_per_second
    speed = f", {rate:.1f} tokens/s" if rate is not None else ""
    session.say(f"first token after {timing.time_to_first_token_seconds:.2f} s{speed}")


def _copy(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    return Copy(session.answer(number("/copy", argument)))


def _summarize(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    return Do("summarize")


def _exit(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    return Do("exit")


def _multiline(session: ChatSession, facts: CommandContext, argument: str) -> Outcome:
    return Do("multiline")


def _parameters(session: ChatSession) -> str:
    sampling = session.settings.sampling
    values = {each.name: getattr(sampling, each.name) for each in fields(sampling)}
    lines = [f"  {name:<18} {'off' if value is None else value}" for name, value in values.items()]
    return "\n".join([*lines, f"  {'render':<18} {session.render}"])


def _prompt(session: ChatSession, backend: Backend) -> str:
    text = backend.prompt(session.conversation.messages("…"))
    return "A server makes its prompt itself." if text is None else text


def _changed(sampling: Sampling, command: str, key: str, value: str) -> Sampling:
    name = key.replace("-", "_")
    if name not in KEYS or not value:
        raise UsageError(
            f"Usage: {slash.usage(command)}",
            f"Keys: {', '.join(KEYS)}; off removes one."
            + (f" Or render {' or '.join(slash.RENDERS)}." if command == "/set" else ""),
        )
    try:
        new = getattr(Sampling(), name) if value == "off" else KEYS[name](value)
    except ValueError:
        raise UsageError(f"{name} cannot be {format_value(value)}.", "Give a number, or off.") from None
    try:
        return validate_sampling(replace(sampling, **{name: new}))
    except UsageError as error:  # no option was typed here
        raise UsageError(error.message.removeprefix("--"), error.hint) from error


_ACTIONS: Mapping[str, Callable[[ChatSession, CommandContext, str], Outcome]] = {
    "/help": _help,
    "/new": _new,
    "/model": _model,
    "/system": _system,
    "/retry": _retry,
    "/undo": _undo,
    "/edit": _edit,
    "/continue": _continue,
    "/fork": _fork,
    "/file": _file,
    "/show": _show,
    "/set": _set,
    "/stats": _stats,
    "/copy": _copy,
    "/summarize": _summarize,
    "/save": save,
    "/title": title,
    "/sessions": sessions,
    "/load": load,
    "/export": export,
    "/multiline": _multiline,
    "/exit": _exit,
}
