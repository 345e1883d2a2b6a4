"""`models.toml`: read strictly, every refusal naming file and key."""

from pathlib import Path

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import check_template, own_models
from localgemma_cli.sampling import Mode, sampling_for

WHOLE = """
[coder]
repository = "someone/tuned"
revision = "v2"
template = "mine.jinja"
adapter = "someone/lora"
endpoint = "http://localhost:8080/v1"
system = "You write Python."
sampling = { temperature = 0.2, top-k = 5 }
"""


def test_every_key_is_read(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(WHOLE)
    own = own_models(file)["coder"]
    assert (own.repository, own.revision, own.adapter) == ("someone/tuned", "v2", "someone/lora")
    assert (own.endpoint, own.system) == ("http://localhost:8080/v1", "You write Python.")
    assert own.template == str(tmp_path / "mine.jinja")
    sampling = sampling_for(Mode.CHAT, own.sampling, temperature=0.9)
    assert (sampling.temperature, sampling.top_k) == (0.9, 5)
    assert sampling_for(Mode.FACTUAL, own.sampling).temperature == 0.3


def test_no_file_means_no_names(tmp_path: Path) -> None:
    assert own_models(tmp_path / "models.toml") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[a]\nrepo = "x/y"', "'repo'"),
        ('[9b]\nrepository = "x/y"', "'9b'"),
        ('["a/b"]\nrepository = "x/y"', "'a/b'"),
        ("[a]\nrepository = 3", "repository of [a]"),
        ('[a]\nsystem = "x"', "needs a repository"),
        ('a = "x/y"', "a must be a table"),
        ('[a]\nrepository = "x/y"\ntemplate = "chatml"', "template of [a]"),
        ('[a]\nrepository = "x/y"\nsampling = { heat = 1 }', "'heat'"),
        ('[a]\nrepository = "x/y"\nsampling = { top-k = 1.5 }', "top_k"),
        ('[a]\nrepository = "x/y"\nsampling = { top-p = 7 }', "--top-p must be between"),
        ("[a", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        own_models(file)
    assert says in caught.value.message
    assert str(file) in caught.value.message


def test_a_template_is_a_form_or_a_jinja_file() -> None:
    assert [check_template(each) for each in ("auto", "raw", "x.jinja")] == ["auto", "raw", "x.jinja"]
    with pytest.raises(UsageError, match="--template"):
        check_template("chatml")
