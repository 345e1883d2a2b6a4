"""Conversation to token ids in a model's prompt form; text of a user never becomes a control token."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from localgemma_cli.conversation import Message, fold_system
from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import AUTO
from localgemma_cli.prompts.detokenizer import Detokenizer
from localgemma_cli.prompts.markers import Markers, markers_for, split_letters
from localgemma_cli.prompts.prompt_forms import Form, select_form, template_error
from localgemma_cli.prompts.template_process import (
    TemplateExceeds,
    TemplateFailed,
    render_bounded,
    render_trusted,
)
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.types import PromptForm

_TURNS = re.compile(r"<start_of_turn>|<end_of_turn>|<\|turn>|<turn\|>|<bos>|<eos>")
# Names of added tokens that are control tokens even if not flagged special, and names that look like one.
_MARK = re.compile(_TURNS.pattern + r"|</?s>|<\|[^\s<>]*>|<[^\s<>]*\|>|\[/?INST\]|<</?SYS>>")
_LIKE_MARK = re.compile(r"<[^\s<>]{2,}>|\[[^\s\[\]]{2,}\]|\{[^\s{}]{2,}\}")
_TEXT_MARK = re.compile(r"<[^\s<>]{2,}>")
_ENDS = ("<eos>", "</s>", "<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>")
_USER, _ANSWER, _AGAIN = "localgemma-user-probe", "localgemma-answer-probe", "localgemma-again-probe"


class Prompter:
    """Renders and encodes conversations for one tokenizer.

    `template`: the value of `--template`; `stated`: the form if the tokenizer has no template.
    Raises UsageError or NotFoundError for a template that cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, template: str = AUTO, stated: PromptForm = "raw") -> None:
        self.tokenizer = tokenizer
        self.form: Form = select_form(template, stated, tokenizer)
        self._template = self.form.template or tokenizer.template or ""
        self._check_template()
        tokenizer.mark_special(self._control_names)

    def text(self, messages: Sequence[Message]) -> str:
        """The text of the prompt, up to where the model continues."""
        if messages and messages[0].role == "text":
            return (self.tokenizer.bos or "") + messages[0].content
        plain = [replace(message, token_ids=None) for message in self._fold(messages)]
        rendered, markers = self._rendered(plain)
        text = markers.remove(self._with_one_bos(rendered))
        return text if messages and messages[-1].role == "assistant" else text + self._opening

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the prompt: control tokens only where the template puts them, and exactly one `<bos>`.

        An assistant message keeps the ids it was generated with. A last one is continued.
        """
        if messages and messages[0].role == "text":
            return [*self.begin_ids, *self._encode_plain(messages[0].content)]
        if messages and messages[-1].role == "assistant":
            *before, last = messages
            begun = self._encode_plain(last.content) if last.token_ids is None else last.token_ids
            return [*self.encode(before), *begun]
        folded_messages = self._fold(messages)
        rendered, markers = self._rendered(folded_messages)
        if not markers.are_intact(rendered):  # the template cut or changed a placeholder
            rendered, markers = self._rendered(
                [replace(message, token_ids=None) for message in folded_messages]
            )
        ids: list[int] = []
        for part in self._control.split(self._with_one_bos(rendered) + self._opening):
            control = self.tokenizer.id_of(part) if self._control.fullmatch(part) else None
            if control is not None:
                ids.append(control)
                continue
            for piece in part.split(markers.edge):
                index = markers.message_index(piece)
                ids.extend(
                    self._encode_plain(markers.remove(piece))
                    if index is None
                    else folded_messages[index].token_ids or ()
                )
        return ids

    @property
    def begin_ids(self) -> list[int]:
        """What every prompt begins with: `<bos>`, or nothing where the tokenizer has none."""
        bos = self.tokenizer.bos
        found = None if bos is None else self.tokenizer.id_of(bos)
        return [] if found is None else [found]

    def encode_answer(self, text: str) -> list[int]:
        """The ids of an answer's text, which follow those of its prompt."""
        return self._encode_plain(text)

    def recognizes(self, answer: Message) -> bool:
        """Whether the answer's ids are in the vocabulary and decode to its text."""
        ids = answer.token_ids or ()
        detokenizer = Detokenizer(self.tokenizer)
        known = max(ids, default=0) < self.tokenizer.size
        return known and "".join(map(detokenizer.step, ids)) + detokenizer.flush() == answer.content

    @cached_property
    def supports_system(self) -> bool:
        """Whether the template renders a system message exactly once; some refuse it, some drop it."""
        probe = "localgemma-system-probe"
        return (self._tried([("system", probe), ("user", "Hi")]) or "").count(probe) == 1

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a model's turn: those known as ends, and the one that this template writes.

        By name as well, because what a repository calls its end may be another's.
        """
        names = {name for name in _ENDS if name in self._control_names}
        turn_end = self._control.search(self._after_answer)
        if turn_end:
            names.add(turn_end[0])
        ids = {self.tokenizer.eos_id, *map(self.tokenizer.id_of, names)}
        return frozenset(token for token in ids if token is not None)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; among them the end of a turn if the tokenizer has no token for it."""
        mark = None if self._control.search(self._after_answer) else _TEXT_MARK.match(self._after_answer)
        return (*self.form.stops, mark[0]) if mark else self.form.stops

    @property
    def note(self) -> str | None:
        """A notice for the user before the first answer."""
        bos = self.tokenizer.bos
        notes = [self.form.note] if self.form.note else []
        if bos and (self._tried([("user", _USER)]) or "").count(bos) > 1:
            notes.append(f"The chat template writes {bos} more than once; only the first is kept.")
        if self._found_opening is None:
            notes.append("The chat template has no generation prompt: answers may continue your text.")
        elif self._opening:
            mark = " ".join(self._opening.split())
            notes.append(f"The chat template has no generation prompt; {mark} is added, as in its turns.")
        return " ".join(notes) or None

    def _fold(self, messages: Sequence[Message]) -> list[Message]:
        """Put the system text before the first user turn if the template does not support it."""
        if not messages or messages[0].role != "system":
            return list(messages)
        if self.form.is_raw:
            raise UsageError(
                "A base model continues text and has no system text.",
                "Write it at the start of your text. --mode factual and creative also add a system text.",
            )
        if self.supports_system:
            return list(messages)
        return list(fold_system(messages))

    def _rendered(self, messages: Sequence[Message]) -> tuple[str, Markers]:
        """The template's output, with messages marked so that no text in them can be a control token.

        A template can still produce one: `| lower` of <EOS>, or its own text joined to a message. Then the
        control tokens differ from those around the message "x", and marks are put between all letters.
        UsageError if that does not help and the template is the user's own file.
        """
        markers = markers_for("".join([*(message.content for message in messages), self._template]))

        def rendering(mark: Callable[[str], str]) -> str:
            return self._render(
                [
                    (each.role, markers.placeholder(at) if each.token_ids is not None else mark(each.content))
                    for at, each in enumerate(messages)
                ]
            )

        rendered = rendering(lambda text: self._control.sub(markers.split_name, text))
        control = self._control.findall(rendered)
        if control != self._control.findall(self._render([(each.role, "x") for each in messages])):
            self._require_marks_kept(messages, markers)
            split = rendering(lambda text: split_letters(text, markers))
            if self._control.findall(split) != control:
                if self.form.file is not None:
                    raise template_error(
                        self.form, TemplateFailed("it turns text of messages into control tokens")
                    )
                rendered = split
        return rendered, markers

    def _require_marks_kept(self, messages: Sequence[Message], markers: Markers) -> None:
        """UsageError for a template that removes the marks between letters, as `encode('ascii')` does."""
        probe = f"localgemma{markers.joint}mark{markers.edge}probe"
        if markers.remove(probe) in self._render([(each.role, probe) for each in messages]):
            why = "it removes characters from messages, which can turn their text into control tokens"
            raise template_error(self.form, TemplateFailed(why))

    def _with_one_bos(self, rendered: str) -> str:
        """The template's output after exactly one `<bos>`."""
        bos = self.tokenizer.bos
        if bos is None:
            return rendered
        before, _, after = rendered.partition(bos)
        whole = rendered if before.strip() else after or before
        return str(bos + whole.replace(bos, ""))

    def _render(self, messages: Sequence[tuple[str, str]], *, opens: bool = True) -> str:
        """Raises UsageError if the template refuses the messages or exceeds its limits."""
        try:
            return self._attempt(messages, opens)
        except TemplateFailed as error:
            raise template_error(self.form, error) from error

    def _tried(self, messages: Sequence[tuple[str, str]], *, opens: bool = True) -> str | None:
        """None if the template refuses the messages; raises UsageError if it exceeds its limits."""
        try:
            return self._attempt(messages, opens)
        except TemplateExceeds as error:
            raise template_error(self.form, error) from error
        except TemplateFailed:
            return None

    def _attempt(self, messages: Sequence[tuple[str, str]], opens: bool) -> str:
        render = render_trusted if self.form.is_built_in else render_bounded
        variables = {
            **self.tokenizer.names,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": opens,
        }
        return render(self._template, variables)

    def _check_template(self) -> None:
        """UsageError for a template that fails, omits the user's text, or uses unknown control tokens."""
        rendered = self._render([("user", _USER)])
        if _USER not in rendered:
            raise template_error(self.form, TemplateFailed("it omits the text of the user"))
        unknown = next((turn for turn in _TURNS.findall(rendered) if not self._control.fullmatch(turn)), None)
        if unknown is not None:
            raise template_error(self.form, TemplateFailed(f"this model's tokenizer has no {unknown}"))

    @cached_property
    def _opening(self) -> str:
        return self._found_opening or ""

    @cached_property
    def _found_opening(self) -> str | None:
        """Text to add so that the model answers; empty if the template adds it, None if it is unknown."""
        if self.form.is_raw:
            return ""
        asked = [("user", _USER)]
        prompt = self._tried(asked)
        if prompt is None or prompt != self._tried(asked, opens=False):
            return ""
        answered = self._tried([*asked, ("assistant", _ANSWER)], opens=False) or ""
        behind, between = prompt.rpartition(_USER)[2], answered.partition(_ANSWER)[0].rpartition(_USER)
        if _ANSWER not in answered or not between[1] or not between[2].startswith(behind):
            return None
        opening = between[2].removeprefix(behind)
        return opening if opening.strip() else ""

    @cached_property
    def _after_answer(self) -> str:
        """The template's text between an answer and the next question."""
        turns = [("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)]
        return (self._tried(turns) or "").partition(_ANSWER)[2].partition(_AGAIN)[0]

    def _encode_plain(self, text: str) -> list[int]:
        """The ids of `text`; names of special tokens in it are ordinary text."""
        return self.tokenizer.encode(text) if text else []

    @cached_property
    def _control_names(self) -> frozenset[str]:
        """The special tokens, and other added tokens that mark turns or that the template writes."""
        turns = [("user", "x"), ("assistant", "x"), ("user", "x")]
        own = self._template + (self._tried([("system", "x"), *turns]) or "") + (self._tried(turns) or "")
        return frozenset(
            name
            for name, special in self.tokenizer.added_tokens.items()
            if name and (special or _MARK.fullmatch(name) or (_LIKE_MARK.fullmatch(name) and name in own))
        )

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches and captures any control token, the longest first."""
        names = sorted(self._control_names, key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")
