"""Names that other programs and the hub have for the models known here."""

import pytest

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.model_names import nearest_model
from localgemma_cli.models.resolve import resolve

MEANT = {
    "9B": "9b",
    "gemma2:9b": "9b",
    "gemma-2-9b-it": "9b",
    "gemma-2-9b": "9b",
    "google/gemma-2-9b": "9b",
    "unsloth/gemma-2-27b-it": "27b",
    "Gemma 2 2B": "2b",
    "gemma2:2b-instruct-q4_0": "2b",
    "gemma3:4b": "3-4b",
    "gemma3:4b-it-qat": "3-4b-qat",
    "google/gemma-3-12b-it-qat-q4_0-gguf": "3-12b-qat",
    "gemma4:e4b": "4-e4b",
    "12b": "3-12b",
    "DEMO": "demo",
    "system9b": "system-9b",
    "13b": None,
    "nonsense": None,
    "someone/else": None,
}


@pytest.mark.parametrize(("name", "meant"), MEANT.items(), ids=MEANT)
def test_a_models_other_names_lead_to_its_own(name: str, meant: str | None) -> None:
    assert nearest_model(name) == meant


@pytest.mark.parametrize("name", ["gemma2:9b", "gemma-2-9b-it", "9B", "google/gemma-2-9b"])
def test_what_is_not_found_suggests_the_name(name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(name, revision=None, offline=True)
    assert "Did you mean 9b" in caught.value.hint
