"""The built-in prompt forms, each a Jinja template, and the choice of one for a model."""

from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.environment import expand_home
from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import AUTO, check_template
from localgemma_cli.prompts.template_process import TemplateFailed
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.text import read_text
from localgemma_cli.types import PROMPT_FORMS, PromptForm

# The form of Gemma 1 and 2, for tokenizers without a template.
_GEMMA = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{{- bos_token }}
{%- for message in messages %}
{{- '<start_of_turn>' + {'assistant': 'model'}.get(message['role'], message['role']) + '\\n' }}
{{- message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{{- '<start_of_turn>model\\n' if add_generation_prompt }}"""

# Alpaca's form with the input block, which models tuned on it expect even without an input.
# A line `### Input:` in the user's text starts the block.
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

# No turns: a base model continues the last text as it is, without the texts before it.
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
CONTINUES = "This is a base model: it continues your text, and each text is independent of the ones before."


@dataclass(frozen=True)
class Form:
    """A prompt form.

    `template`: None for the tokenizer's own. `stops`: stop strings, in addition to stop tokens.
    `is_raw`: the text is continued, without turns or system text. `file`: the path of a user's own template.
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
        """A notice for the user before the first answer."""
        return CONTINUES if self.is_raw else None


def select_form(template: str, stated: PromptForm, tokenizer: Tokenizer) -> Form:
    """The form that `--template` names; for auto the tokenizer's, or `stated` if it has none."""
    if template == AUTO:
        return Form() if tokenizer.template else built_in(stated)
    check_template(template)
    named = PROMPT_FORMS.get(template)
    return built_in(named) if named else _from_file(expand_home(template))


def built_in(form: PromptForm) -> Form:
    stops = (_NEXT_REQUEST,) if form in ("alpaca", "alpaca-chat") else ()
    return Form(_TEMPLATES[form], stops, is_raw=form == "raw")


def template_error(form: Form, error: TemplateFailed) -> UsageError:
    """The error for a template that cannot be rendered, with the line if known."""
    line = f", line {error.line}" if error.line else ""
    own = "The tokenizer's chat template" if form.template is None else "This prompt form"
    return UsageError(
        f"{form.file or own}{line} cannot be used: {error}",
        "Correct the file." if form.file else "Choose another form with --template.",
    )


def _from_file(path: Path) -> Form:
    return Form(read_text(path, pipes=True), file=path)
