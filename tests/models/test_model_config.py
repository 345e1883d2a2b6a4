"""Config files as the hub has them, with what they leave out, and those that are refused."""

import pytest
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.model_config import architecture_of, stored_format_of

GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def test_a_config_that_leaves_out_defaults_is_read_as_transformers_reads_it():
    shape = architecture_of(GEMMA_3_4B, "4b")
    assert shape.parameters == 3_880_263_168
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (8, 4, 256)
    assert (shape.sliding_window, shape.sliding_layers, shape.context_length) == (1024, 29, 131_072)
    assert not shape.softcap


@pytest.mark.parametrize("config_class", [GemmaConfig, Gemma2Config, Gemma3TextConfig])
def test_an_empty_config_has_transformers_own_defaults(config_class):
    own = config_class()
    shape = architecture_of({"model_type": config_class.model_type}, "bare")
    assert shape == architecture_of(own.to_dict(), "whole")
    assert (shape.layers, shape.hidden, shape.ffn) == (
        own.num_hidden_layers,
        own.hidden_size,
        own.intermediate_size,
    )
    assert shape.sliding_layers == (getattr(own, "layer_types", None) or []).count("sliding_attention")


def test_layer_types_are_believed_over_the_usual_pattern():
    types = ["sliding_attention"] * 2 + ["full_attention"] * 24
    assert architecture_of({"model_type": "gemma2", "layer_types": types}, "mine").sliding_layers == 2


def test_no_window_means_no_sliding_layer():
    shape = architecture_of({"model_type": "gemma2", "sliding_window": None}, "mine")
    assert (shape.sliding_window, shape.sliding_layers) == (None, 0)


@pytest.mark.parametrize(("said", "capped"), [({}, True), ({"attn_logit_softcapping": None}, False)])
def test_gemma_2_caps_its_scores_unless_its_config_says_no(said, capped):
    assert architecture_of({"model_type": "gemma2", **said}, "mine").softcap is capped


def test_an_untied_head_is_counted():
    tied, untied = (
        architecture_of({"model_type": "gemma", "tie_word_embeddings": tie}, "mine") for tie in (True, False)
    )
    assert untied.parameters - tied.parameters == 256_000 * 3072


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "gemma2", "architectures": ["Gemma2ForSequenceClassification"]},
        {"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"]},
        {"model_type": "paligemma"},
        {"model_type": ["gemma2"]},
        {},
    ],
)
def test_what_is_no_chatting_gemma_is_refused_by_name(config):
    with pytest.raises(NotFoundError, match="some/repo is not a Gemma") as caught:
        architecture_of(config, "some/repo")
    assert "models list" in caught.value.hint


@pytest.mark.parametrize("value", [0, -1, "26", 2.5, True, None])
def test_a_damaged_config_is_refused_with_the_key(value):
    with pytest.raises(NotFoundError, match="num_hidden_layers"):
        architecture_of({"model_type": "gemma2", "num_hidden_layers": value}, "mine")


@pytest.mark.parametrize(
    ("stored", "format"),
    [
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
            },
            StoredFormat("nf4", nested=True),
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, StoredFormat("int8")),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, StoredFormat("awq")),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, StoredFormat("awq", group=64)),
        (None, None),
    ],
)
def test_a_quantized_checkpoint_is_recognised(stored, format):
    assert stored_format_of({"quantization_config": stored}, "mine") == format


AWQ_GEMV = {"quant_method": "awq", "bits": 4, "version": "gemv"}


@pytest.mark.parametrize(
    "stored", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 8}, AWQ_GEMV, {}]
)
def test_other_quantized_checkpoints_are_refused(stored):
    with pytest.raises(NotFoundError, match="quantized form"):
        stored_format_of({"quantization_config": stored}, "mine")
