"""Where `from_pretrained` is told to put the weights."""

import pytest
from support.models import DEMO

from localgemma_cli.backends.pytorch.loading.pretrained import pretrained_arguments
from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.hardware import GIB, describe_hardware
from localgemma_cli.planning.plan import make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.planning.settings import Overrides


def spread_plan(model, memory, tmp_path):
    hardware = describe_hardware("cuda", memory, 64 * GIB)
    return make_plan(lookup(model), "exact", hardware, Overrides(), load_presets(tmp_path / "none"))


def test_a_spread_model_has_every_module_on_one_of_its_gpus(tmp_path):
    import torch
    from accelerate.utils import check_device_map, check_tied_parameters_on_same_device, find_tied_parameters
    from transformers import AutoConfig, AutoModelForCausalLM

    plan = spread_plan("9b", (14 * GIB, 12 * GIB), tmp_path)
    places = pretrained_arguments(plan)["device_map"]
    shape = plan.model.architecture
    types = ["full_attention"] * shape.layers
    config = AutoConfig.from_pretrained(DEMO, num_hidden_layers=shape.layers, layer_types=types)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    check_device_map(model, places)
    check_tied_parameters_on_same_device(find_tied_parameters(model), places)
    assert set(places.values()) == {"cuda:0", "cuda:1"}
    assert places["model.embed_tokens"] == places["lm_head"] == places["model.layers.0"] == "cuda:0"
    assert places[f"model.layers.{shape.layers - 1}"] == "cuda:1"


@pytest.mark.gpu
def test_a_spread_model_answers_as_one_gpu_does(tmp_path):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    from dataclasses import replace
    from threading import Event

    from localgemma_cli.backends.pytorch.backend import load_backend
    from localgemma_cli.conversation import Message
    from localgemma_cli.events import Delta
    from localgemma_cli.planning.layer_split import LayerShare
    from localgemma_cli.sampling import Sampling

    one = make_plan(
        lookup("demo"),
        "exact",
        describe_hardware("cuda", 8 * GIB, 8 * GIB),
        Overrides(),
        load_presets(tmp_path),
    )
    one = replace(one, compile="none", cache="full", dtype="float32")
    two = replace(one, shares=(LayerShare(0, "a", 0, 2, 0, 0), LayerShare(1, "b", 3, 5, 0, 0)))
    answers = []
    for plan in (one, two):
        backend = load_backend(plan, DEMO, lambda _: None)
        sampling = Sampling(temperature=0, max_new_tokens=40)
        events = backend.stream([Message("user", "What can you do?")], sampling, Event())
        answers.append("".join(event.text for event in events if isinstance(event, Delta)))
    assert answers[0]
    assert answers[0] == answers[1]
