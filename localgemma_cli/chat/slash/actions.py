"""What each slash command does."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from shutil import get_terminal_size
from typing import Any

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.attachments import format_tokens, read_attachment
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.phrases import format_count, shorten
from localgemma_cli.chat.prompt_text import as_pasted
from localgemma_cli.chat.slash import slash_commands as slash
from localgemma_cli.chat.slash.arguments import argument_error, parse_count, split_paths
from localgemma_cli.chat.slash.context_view import format_context
from localgemma_cli.chat.slash.outcome import (
    AskQuestion,
    CommandContext,
    CopyText,
    EditText,
    LoopAction,
    Outcome,
    SwitchModel,
)
from localgemma_cli.chat.slash.session_commands import (
    export_session,
    list_sessions,
    load_session,
    save_session,
    set_title,
)
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


def perform(session: ChatSession, context: CommandContext, name: str, argument: str) -> Outcome:
    """Run one command; raises UsageError with its usage if it does not accept `argument`."""
    if argument and not slash.COMMANDS[name].argument:
        raise argument_error(name)
    return _ACTIONS[name](session, context, argument)


def _help(session: ChatSession, context: CommandContext, argument: str) -> None:
    session.say(Block(slash.help_text(get_terminal_size().columns)))


def _new(session: ChatSession, context: CommandContext, argument: str) -> None:
    session.switch_conversation(Conversation(session.conversation.system), None)
    session.say("[new conversation]")


def _model(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    if argument:
        return SwitchModel(argument)
    session.say(context.model())
    return None


def _system(session: ChatSession, context: CommandContext, argument: str) -> None:
    if argument:
        session.set_system(None if argument == "-" else argument)
    text = session.system
    session.say(f"System text: {text}" if text else "There is no system text.")


def _retry(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    sampling = session.settings.sampling
    for word in argument.split():
        key, equals, value = word.partition("=")
        sampling = _change_sampling(sampling, "/retry", key, value if equals else "")
    return AskQuestion(as_pasted(session.start_replacing(1)), sampling)


def _undo(session: ChatSession, context: CommandContext, argument: str) -> None:
    removed = session.undo(parse_count("/undo", argument))
    session.say(
        f"[removed {format_count(len(removed), 'turn')}, from “{shorten(removed[0].question.content)}”]"
    )


def _edit(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    count = parse_count("/edit", argument)
    text = session.start_replacing(count)
    session.say(f"[your next message replaces {format_count(count, 'turn')}; send an empty one to cancel]")
    return EditText(text)


def _continue(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    return LoopAction.CONTINUE


def _fork(session: ChatSession, context: CommandContext, argument: str) -> None:
    before = session.recorder.session
    session.conversation = session.recorder.fork(session.conversation)
    here = session.recorder.session
    if before is None or here == before:
        session.say("[nothing to copy: this conversation is not saved]")
    else:
        session.say(f"[copied to conversation {here}; {before} is unchanged]")


def _file(session: ChatSession, context: CommandContext, argument: str) -> None:
    if not argument:
        raise argument_error("/file")
    if argument == "-":
        session.attachments = []
        session.say("[attachments removed]")
        return
    found = [read_attachment(path) for path in split_paths(argument)]
    backend = context.ready_backend()
    tokens = [
        each.count_tokens(backend) for each in found
    ]  # before attaching: a Ctrl-C here attaches nothing
    session.attachments += found
    for each, (count, exact) in zip(found, tokens, strict=True):
        session.say(f"[attached to your next message: {one_line(each.name)}, {format_tokens(count, exact)}]")
    length = backend.context_length if backend else None
    if length and sum(count for count, _ in tokens) > length:
        session.say(f"[the files exceed the context of {length} tokens; /file - removes them]")


def _show(session: ChatSession, context: CommandContext, argument: str) -> None:
    match argument:
        case "plan":
            session.say(Block(context.plan()))
        case "model":
            session.say(one_line(context.model()))
        case "params":
            session.say(_format_parameters(session))
        case "context" | "prompt":
            if (backend := context.wait_for_backend()) is not None:
                text = (
                    format_context(session, backend)
                    if argument == "context"
                    else _format_prompt(session, backend)
                )
                session.say(Block(text))
        case _:
            raise argument_error("/show")


def _set(session: ChatSession, context: CommandContext, argument: str) -> None:
    key, _, value = argument.replace("=", " ", 1).partition(" ")
    if key == "render" and value.strip() in slash.RENDERS:
        session.render = value.strip()
    elif key:
        sampling = _change_sampling(session.settings.sampling, "/set", key, value.strip())
        session.settings = replace(session.settings, sampling=sampling)
    session.say(_format_parameters(session))


def _stats(session: ChatSession, context: CommandContext, argument: str) -> None:
    if not session.totals.answers:
        session.say("There are no answers yet.")
        return
    if session.last is not None:
        _say_last_answer(session, session.last)
    total = session.totals
    session.say(
        f"this chat: {format_count(total.answers, 'answer')}, {total.generated} tokens generated,"
        f" {total.prefilled} read, {total.cached} cached"
    )


def _say_last_answer(session: ChatSession, answer: Answer) -> None:
    usage, timing = answer.finished.usage, answer.finished.timing
    if usage.prompt_tokens is not None:
        cached = usage.cached_prompt_tokens or 0
        session.say(
            f"last answer: {usage.completion_tokens} tokens; prompt: {usage.prompt_tokens} tokens,"
            f" {cached} cached and {usage.prompt_tokens - cached} read"
        )
    rate = timing.decode_tokens_per_second
    speed = f", {rate:.1f} tokens/s" if rate is not None else ""
    session.say(f"first token after {timing.time_to_first_token_seconds:.2f} s{speed}")


def _copy(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    return CopyText(session.answer(parse_count("/copy", argument)))


def _summarize(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    return LoopAction.SUMMARIZE


def _exit(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    return LoopAction.EXIT


def _swap_enter(session: ChatSession, context: CommandContext, argument: str) -> Outcome:
    return LoopAction.SWAP_ENTER


def _format_parameters(session: ChatSession) -> str:
    sampling = session.settings.sampling
    values = {name: getattr(sampling, name) for name in KEYS}
    lines = [f"  {name:<18} {'off' if value is None else value}" for name, value in values.items()]
    return "\n".join([*lines, f"  {'render':<18} {session.render}"])


def _format_prompt(session: ChatSession, backend: Backend) -> str:
    text = backend.prompt(session.conversation.messages("…"))
    return "The server builds the prompt itself." if text is None else text


def _change_sampling(sampling: Sampling, command: str, key: str, value: str) -> Sampling:
    """Set one value; raises UsageError for an unknown key or a value that is out of range."""
    name = key.replace("-", "_")
    if name not in KEYS or not value:
        render = f" Or render {' or '.join(slash.RENDERS)}." if command == "/set" else ""
        raise UsageError(
            f"Usage: {slash.usage(command)}", f"Keys: {', '.join(KEYS)}; off resets one.{render}"
        )
    try:
        new = getattr(Sampling(), name) if value == "off" else KEYS[name](value)
    except ValueError:
        raise UsageError(
            f"{name} must be a number or off (got {format_value(value)}).", "Type it again."
        ) from None
    try:
        return validate_sampling(replace(sampling, **{name: new}))
    except UsageError as error:  # the message names an option, but no option was typed here
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
    "/save": save_session,
    "/title": set_title,
    "/sessions": list_sessions,
    "/load": load_session,
    "/export": export_session,
    "/multiline": _swap_enter,
    "/exit": _exit,
}
