"""Conversation to token ids: the tokenizer's own template; no text of a user becomes a control token."""

import re
from collections.abc import Sequence
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from localgemma_cli.conversation import Message
from localgemma_cli.errors import NotFoundError


class Prompter:
    """Renders and encodes conversations for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise NotFoundError(
                "This model's tokenizer has no chat template, so it cannot chat.",
                "Take an instruction-tuned model (their names usually end in -it).",
            )
        self.tokenizer = tokenizer

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as the template writes it, up to where the model goes on."""
        return self._render([(message.role, message.content) for message in self._fold(messages)])

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids: control tokens only where the template put them, and exactly one `<bos>`.

        An assistant message that carries the ids it was generated with keeps them.
        """
        folded = self._fold(messages)
        edge, joint = _unused_characters("".join(message.content for message in folded), 2)
        marked = [
            (message.role, _marked(message, index, self._control, edge, joint))
            for index, message in enumerate(folded)
        ]
        ids: list[int] = []
        for part in self._control.split(self._render(marked)):
            if self._control.fullmatch(part):
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
                continue
            for piece in part.split(edge):
                if piece.startswith(joint * 2):
                    ids.extend(folded[int(piece[2:])].token_ids or ())
                else:
                    ids.extend(self._encode_plain(piece.replace(joint, "")))
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

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
        """`<eos>` and the token that the template ends a model's turn with."""
        probe = "localgemma-answer-probe"
        after = self._render([("user", "Hi"), ("assistant", probe), ("user", "Hi")]).split(probe)[1]
        turn_end = self._control.search(after)
        ids = {self.tokenizer.eos_token_id}
        if turn_end:
            ids.add(self.tokenizer.convert_tokens_to_ids(turn_end[0]))
        return frozenset(ids - {None})

    def _fold(self, messages: Sequence[Message]) -> list[Message]:
        """Where the template takes no system message, its text and a blank line open the first user turn."""
        if not messages or messages[0].role != "system" or self.takes_system:
            return list(messages)
        system, first, *rest = messages
        return [Message("user", f"{system.content.strip()}\n\n{first.content.strip()}"), *rest]

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        rendered: str = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return rendered

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of `text` with the names of special tokens read as ordinary text."""
        if not text:
            return []
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches any control token, capturing it: the special ones, longest first."""
        names = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
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
