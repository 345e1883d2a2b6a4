"""The prompt forms, each a Jinja template, and which of them a model is talked to in."""

from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.environment import expand_home
from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import AUTO, check_template
from localgemma_cli.prompts.template_process import TemplateFailed
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.text import read_text
from localgemma_cli.types import PROMPT_FORMS, PromptForm

# Gemma 1's and 2's own form, for tokenizers that lost it.
_GEMMA = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{{- bos_token }}
{%- for message in messages %}
{{- '<start_of_turn>' + {'assistant': 'model'}.get(message['role'], message['role']) + '\\n' }}
{{- message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{{- '<start_of_turn>model\\n' if add_generation_prompt }}"""

# Alpaca's form with the input block, as the models that are tuned in it saw it also where there was no input.
# A line `### Input:` in the user's text begins the block.
_ALPACA = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{{- bos_token }}
{{- 'Below is an instruction that describes a task, paired with an input that provides further context. ' }}
{{- 'Write a response that appropriately completes the request.' }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{%- set parts = ('\\n' + message['content']).split('\\n### Input:\\n', 1) %}
{{- '\\n\\n### Instruction:\\n' + parts[0] | trim + '\\n\\n### Input:\\n' + parts[1:] | join | trim }}
{{- '\\n\\n### Response:\\n' }}
{%- else %}
{{- message['content'] }}{{ eos_token }}
{%- endif %}
{%- endfor %}"""

_ALPACA_CHAT = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{{- bos_token }}
{{- 'Below are some instructions that describe some tasks. Write responses that appropriately complete ' }}
{{- 'each request.' }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '\\n\\n### Instruction:\\n' + message['content'] | trim + '\\n\\n### Response:\\n' }}
{%- else %}
{{- message['content'] }}{{ eos_token }}
{%- endif %}
{%- endfor %}"""

# No turns: what a base model is to continue, untouched, and nothing of what it continued before.
_RAW = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system text') }}{% endif %}
{{- bos_token }}{{ messages[-1]['content'] }}"""

_TEMPLATES: dict[PromptForm, str] = {
    "gemma": _GEMMA,
    "alpaca": _ALPACA,
    "alpaca-chat": _ALPACA_CHAT,
    "raw": _RAW,
}
_NEXT_REQUEST = "### Instruction:"
CONTINUES = "This is a base model: it continues your text, and each text starts anew."


@dataclass(frozen=True)
class Form:
    """`template` None: the tokenizer's own. `stops`: texts at which an answer ends, besides stop tokens.

    `is_raw`: text in, its continuation out; no turns and no system text. `file`: where a user's own lies.
    """

    template: str | None = None
    stops: tuple[str, ...] = ()
    is_raw: bool = False
    file: Path | None = None

    @property
    def is_built_in(self) -> bool:
        return self.template is not None and self.file is None

    @property
    def note(self) -> str | None:
        """What a person should know before the first answer."""
        return CONTINUES if self.is_raw else None


def select_form(template: str, stated: PromptForm, tokenizer: Tokenizer) -> Form:
    """What `--template` says; for auto the tokenizer's own, or without one what the catalogue states."""
    if template == AUTO:
        return Form() if tokenizer.template else built_in(stated)
    check_template(template)
    named = PROMPT_FORMS.get(template)
    return built_in(named) if named else _from_file(expand_home(template))


def built_in(form: PromptForm) -> Form:
    stops = (_NEXT_REQUEST,) if form in ("alpaca", "alpaca-chat") else ()
    return Form(_TEMPLATES[form], stops, is_raw=form == "raw")


def template_error(form: Form, error: TemplateFailed) -> UsageError:
    """Why a template could not be rendered, with the line where it is known."""
    line = f", line {error.line}" if error.line else ""
    own = "The tokenizer's chat template" if form.template is None else "This prompt form"
    return UsageError(
        f"{form.file or own}{line} cannot be used: {error}",
        "Correct the file." if form.file else "Take another form with --template.",
    )


def _from_file(path: Path) -> Form:
    return Form(read_text(path, pipes=True), file=path)
