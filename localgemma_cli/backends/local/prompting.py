"""Conversation to token ids, in the form a model is talked to; no text of a user becomes a control token."""

import re
from collections.abc import Sequence
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from localgemma_cli.backends.local.forms import Form, form_of, template_error
from localgemma_cli.conversation import Message, folded
from localgemma_cli.errors import UsageError
from localgemma_cli.planning.choices import PromptForm
from localgemma_cli.planning.own_models import AUTO

_TURNS = re.compile(r"<start_of_turn>|<end_of_turn>|<\|turn>|<turn\|>|<bos>|<eos>")


class Prompter:
    """Renders and encodes conversations for one tokenizer.

    `template` is what `--template` says, `stated` the form where the tokenizer brings no template.
    UsageError or NotFoundError for a template that cannot be used.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str = AUTO, stated: PromptForm = "raw"
    ) -> None:
        self.tokenizer = tokenizer
        self.form: Form = form_of(template, stated, tokenizer)
        self._check_template()

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as it is encoded, up to where the model goes on."""
        rendered = self._render([(message.role, message.content) for message in self._fold(messages)])
        bos = self.tokenizer.bos_token
        return rendered if bos is None or rendered.startswith(bos) else bos + rendered

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids: control tokens only where the template put them, and exactly one `<bos>`.

        An assistant message that carries the ids it was generated with keeps them. One at the end goes on.
        """
        if messages and messages[-1].role == "assistant":
            *before, last = messages
            begun = self._encode_plain(last.content) if last.token_ids is None else last.token_ids
            return [*self.encode(before), *begun]
        told = self._fold(messages)
        edge, joint = _unused_characters("".join(message.content for message in told), 2)
        marked = [
            (message.role, _marked(message, index, self._control, edge, joint))
            for index, message in enumerate(told)
        ]
        rendered = self._render(marked)
        self._require_own_control_tokens(rendered, told)
        ids: list[int] = []
        for part in self._control.split(rendered):
            if self._control.fullmatch(part):
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
                continue
            for piece in part.split(edge):
                if piece.startswith(joint * 2):
                    ids.extend(told[int(piece[2:])].token_ids or ())
                else:
                    ids.extend(self._encode_plain(piece.replace(joint, "")))
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _require_own_control_tokens(self, rendered: str, messages: Sequence[Message]) -> None:
        """A user's own template may change letters: `| lower` would make a control token of <EOS>."""
        if self.form.file is not None:
            plain = self._render([(message.role, "x") for message in messages])
            if self._control.findall(rendered) != self._control.findall(plain):
                raise template_error(self.form, ValueError("it makes control tokens of what is said"))

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template renders a system message, once and whole; some refuse it, some drop it."""
        probe = "localgemma-system-probe"
        try:
            return self._render([("system", probe), ("user", "Hi")]).count(probe) == 1
        except TemplateError:
            return False

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """`<eos>` and the token that the template ends a model's turn with; some are for one turn only."""
        probe = "localgemma-answer-probe"
        try:
            rendered = self._render([("user", "Hi"), ("assistant", probe), ("user", "Hi")])
        except TemplateError:
            rendered = ""
        turn_end = self._control.search(rendered.partition(probe)[2])
        ids = {self.tokenizer.eos_token_id}
        if turn_end:
            ids.add(self.tokenizer.convert_tokens_to_ids(turn_end[0]))
        return frozenset(ids - {None})

    def _fold(self, messages: Sequence[Message]) -> list[Message]:
        """Where the template takes no system message, its text and a blank line open the first user turn."""
        if not messages or messages[0].role != "system":
            return list(messages)
        if self.form.is_raw:
            raise UsageError(
                "A base model continues text and takes no system text.",
                "Write it at the beginning of your text; --mode factual and creative add one, too.",
            )
        if self.takes_system:
            return list(messages)
        return list(folded(messages))

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        rendered: str = self.tokenizer.apply_chat_template(
            chat, chat_template=self.form.template, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _check_template(self) -> None:
        """A UsageError for a template with errors, without the user's text, or for another's tokens."""
        probe = "localgemma-user-probe"
        try:
            rendered = self._render([("user", probe)])
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise template_error(self.form, error) from error
        if probe not in rendered:
            raise template_error(self.form, ValueError("it leaves out what the user says"))
        unknown = next((turn for turn in _TURNS.findall(rendered) if not self._control.fullmatch(turn)), None)
        if unknown is not None:
            raise template_error(self.form, ValueError(f"this model's tokenizer has no {unknown}"))

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of `text` with the names of special tokens read as ordinary text."""
        if not text:
            return []
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return ids

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches any control token, capturing it, longest first: the special ones, and marks of turns."""
        added = self.tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special or _TURNS.fullmatch(token.content)}
        return re.compile("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")")


def _marked(message: Message, index: int, control: re.Pattern[str], edge: str, joint: str) -> str:
    """Content as the template is to see it: a stand-in for known ids, and control tokens' names broken up.

    Between two `edge` characters stands a piece that is encoded by itself; `joint` breaks a name in two.
    """
    if message.token_ids is not None:
        return f"{edge}{joint}{joint}{index}{edge}"
    return control.sub(lambda name: f"{edge}{name[0][0]}{joint}{name[0][1:]}{edge}", message.content)


def _unused_characters(text: str, count: int) -> list[str]:
    """Private-use characters that do not occur in `text`, so that no text can imitate the marks."""
    private = (chr(code) for code in range(0xF0000, 0xFFFFE))
    return [char for char, _ in zip((c for c in private if c not in text), range(count), strict=False)]
