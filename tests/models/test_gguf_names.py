"""Which GGUF file of a repository a name means, over listings as they are on the hub."""

import pytest

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.gguf_names import (
    GgufModel,
    GgufName,
    choose_gguf,
    full_name,
    gguf_models,
    list_words,
    parse_gguf_name,
)

UNSLOTH = {
    "BF16/gemma-3-27b-it-BF16-00001-of-00002.gguf": 50_000_000_000,
    "BF16/gemma-3-27b-it-BF16-00002-of-00002.gguf": 4_000_000_000,
    "gemma-3-27b-it-IQ4_XS.gguf": 15_000_000_000,
    "gemma-3-27b-it-Q4_0.gguf": 15_600_000_000,
    "gemma-3-27b-it-Q4_K_M.gguf": 16_500_000_000,
    "gemma-3-27b-it-UD-Q4_K_XL.gguf": 16_800_000_000,
    "imatrix_unsloth.gguf": 10_000_000,
    "mmproj-BF16.gguf": 858_000_000,
}
QAT = {"gemma-3-4b-it-q4_0.gguf": 3_160_000_000, "mmproj-model-f16-4B.gguf": 851_000_000}
DOTTED = {"gemma-2-9b-it.Q2_K.gguf": 3_800_000_000, "gemma-2-9b-it.Q8_0.gguf": 9_800_000_000}
TWICE = {
    "gemma-Q8_0.gguf": 1_000_000_000,
    "sub/gemma-Q8_0.gguf": 2_000_000_000,
    "2b_it_v2.gguf": 5_000_000_000,
}
FLOATS = {"gemma-2b.gguf": 10_000_000_000}
NO_DEFAULT = {"m-Q2_K.gguf": 1_000_000_000, "m-Q3_K_M.gguf": 2_000_000_000}

MEANT = [
    (UNSLOTH, None, "Q4_K_M"),
    (UNSLOTH, "q4_k_m", "Q4_K_M"),
    (UNSLOTH, "Q4_K_XL", "UD-Q4_K_XL"),
    (UNSLOTH, "ud-q4_k_xl", "UD-Q4_K_XL"),
    (UNSLOTH, "Q4_0", "Q4_0"),
    (UNSLOTH, "bf16", "BF16"),
    (UNSLOTH, "BF16/gemma-3-27b-it-BF16-00001-of-00002.gguf", "BF16"),
    (UNSLOTH, "gemma-3-27b-it-BF16.gguf", "BF16"),
    (UNSLOTH, "Gemma-3-27b-it-IQ4_XS.GGUF", "IQ4_XS"),
    (QAT, None, "Q4_0"),
    (DOTTED, None, "Q8_0"),
    (DOTTED, "q2_k", "Q2_K"),
    (FLOATS, None, "gemma-2b.gguf"),
    (TWICE, "sub/gemma-Q8_0.gguf", "sub/gemma-Q8_0.gguf"),
    (TWICE, "gemma-q8_0.gguf", "gemma-Q8_0.gguf"),
    (TWICE, "2b_it_v2.gguf", "2b_it_v2.gguf"),
]
REFUSED = [
    (UNSLOTH, "Q5_K_M", "no GGUF file Q5_K_M"),
    (UNSLOTH, "Q4_K", "no GGUF file Q4_K"),
    (UNSLOTH, "K_M", "no GGUF file K_M"),
    (UNSLOTH, "4_0", "no GGUF file 4_0"),
    (UNSLOTH, "mmproj-BF16.gguf", "belongs to a model but is not one"),
    (QAT, "f16", "no GGUF file f16"),
    (NO_DEFAULT, None, "several GGUF files"),
    (TWICE, "Q8_0", "2 GGUF files that match Q8_0"),
    ({"mmproj-F16.gguf": 1}, None, "has no GGUF files"),
    ({"m-Q8_0-00001-of-00003.gguf": 1, "m-Q8_0-00003-of-00003.gguf": 1}, "Q8_0", "one of 3 pieces"),
]


def chosen(sizes: dict[str, int], wanted: str | None) -> GgufModel:
    return choose_gguf(GgufName("org/repo", wanted), gguf_models(sizes))


@pytest.mark.parametrize(("sizes", "wanted", "meant"), MEANT)
def test_a_name_means_one_model_which_its_full_name_means_too(
    sizes: dict[str, int], wanted: str | None, meant: str
) -> None:
    models = gguf_models(sizes)
    model = chosen(sizes, wanted)
    typed_word = wanted is None or not wanted.lower().endswith(".gguf")
    name = full_name(GgufName("org/repo", wanted), model, models)
    assert name.wanted == (meant if typed_word else model.files[0])
    assert choose_gguf(name, models) == model == chosen(sizes, meant)


@pytest.mark.parametrize(("sizes", "wanted", "problem"), REFUSED)
def test_what_is_not_there_or_ambiguous_is_refused(
    sizes: dict[str, int], wanted: str | None, problem: str
) -> None:
    with pytest.raises(NotFoundError, match=problem) as caught:
        chosen(sizes, wanted)
    assert "org/repo" in caught.value.message
    assert "\n" not in caught.value.hint


def test_an_error_lists_the_words_to_type_with_sizes() -> None:
    with pytest.raises(NotFoundError) as caught:
        chosen(NO_DEFAULT, "Q4_K_M")
    assert caught.value.hint == "Choose one of: org/repo:Q2_K (1.0 GB), :Q3_K_M (2.0 GB)."
    words = list_words("org/repo", gguf_models(TWICE))
    assert (
        words == "org/repo:2b_it_v2.gguf (5.0 GB), :gemma-Q8_0.gguf (1.0 GB), :sub/gemma-Q8_0.gguf (2.0 GB)"
    )


def test_the_pieces_of_a_split_model_are_one_model() -> None:
    model = chosen(UNSLOTH, "BF16")
    assert model.files == tuple(UNSLOTH)[:2]
    assert (model.size, model.is_complete) == (54_000_000_000, True)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", ("ggml-org/gemma-3-4b-it-GGUF", "Q4_K_M")),
        ("org/repo:sub/gemma-Q8_0.gguf", ("org/repo", "sub/gemma-Q8_0.gguf")),
        ("org/repo:latest", ("org/repo", None)),
        ("hf.co/org/repo:Q4_K_M", ("org/repo", "Q4_K_M")),
        ("https://huggingface.co/org/repo:Q4_K_M", ("org/repo", "Q4_K_M")),
    ],
)
def test_a_name_has_two_parts(name: str, parts: tuple[str, str | None]) -> None:
    assert parse_gguf_name(name) == GgufName(*parts)


@pytest.mark.parametrize(
    "name",
    [
        r"C:\x.gguf",
        "C:/models/x.gguf",
        r"models\x:y.gguf",
        "./models/a:b.gguf",
        "../a:b.gguf",
        "/models/a:b.gguf",
        "~/a:b.gguf",
        "one/two/three:four.gguf",
        "org/repo",
        "org/repo:",
        "org/repo:../x.gguf",
        "org/repo:/x.gguf",
        "gemma2:9b",
        "http://localhost:8080",
    ],
)
def test_paths_and_other_names_are_none(name: str) -> None:
    assert parse_gguf_name(name) is None
