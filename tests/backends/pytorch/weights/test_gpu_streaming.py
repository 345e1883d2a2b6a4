"""The ring of slots for streamed weights, on queues that run as late, or as early, as they are allowed to."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.models import DEMO
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.layers.nf4 import PlainNF4
from localgemma_cli.backends.pytorch.loading.load_4bit import load_quantized
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.backends.pytorch.weights.gpu_streaming import (
    Bundle,
    CudaLink,
    Ring,
    SplitLinear,
    add_ring_hooks,
    split_rows,
)
from localgemma_cli.errors import DoesNotFitError
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import describe_hardware, probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

LAYERS = 5


class Queues:
    """A device whose copies run when asked for (`early`) or only once something waits for them.

    Computing is at once, but counts as under way until a queue waits for a mark made after it.
    """

    def __init__(self, *, early: bool) -> None:
        self.device = torch.device("cpu")
        self.log: list[tuple[str, int]] = []
        self.pinned = 0
        self._early = early
        self._queue: list[Callable[[], object]] = []
        self._done = self._clock = self._known = 0
        self._last_use: dict[int, int] = {}
        self._sources: dict[int, tuple[Tensor, int]] = {}
        self._host_knows = 0

    def pin(self, tensor: Tensor) -> None:
        self.pinned += tensor.nbytes

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert self._last_use.get(target.data_ptr(), 0) <= self._known, "overwrites what may be in use"
        before, number = self._sources.get(source.data_ptr(), (source, -1))
        assert torch.equal(before, source) or number < self._host_knows, "written to before it was read"
        self._sources[source.data_ptr()] = (source.clone(), len(self._queue))
        self.log.append(("copy", target.data_ptr()))
        self._queue.append(partial(target.copy_, source))
        if self._early:
            self._run(len(self._queue))

    def use(self, slot: int) -> None:
        self._clock += 1
        self._last_use[slot] = self._clock
        self.log.append(("use", slot))

    def mark_copies(self) -> int:
        return len(self._queue)

    def mark_computing(self) -> int:
        return self._clock

    def delay_copies(self, mark: int) -> None:
        self._known = max(self._known, mark)

    def delay_computing(self, mark: int) -> None:
        self._run(mark)

    def wait_on_host(self, mark: int) -> None:
        self._host_knows = max(self._host_knows, mark)
        self._run(mark)

    def _run(self, mark: int) -> None:
        for number in range(self._done, mark):
            self._queue[number]()
        self._done = max(self._done, mark)


class Sum(nn.Module):
    """Reads all of its item's bytes."""

    def __init__(self, ring: Ring, queues: Queues, item: int) -> None:
        super().__init__()
        self.views, self.queues = ring.views(item), queues

    def forward(self) -> list[float]:
        self.queues.use(self.views[0].data_ptr())
        return [float(view.float().sum()) for view in self.views]


def bundles_of(count: int) -> list[Bundle]:
    return [
        Bundle((torch.full((100 + item,), item + 1, dtype=torch.uint8), torch.full((7,), item + 0.5)))
        for item in range(count)
    ]


@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("pinned", [0, 2, 99])
def test_every_item_computes_from_its_own_bytes_round_after_round(
    count: int, pinned: int, early: bool
) -> None:
    queues, bundles = Queues(early=early), bundles_of(count)
    ring = Ring(bundles, queues, pinned * bundles[0].size)
    modules = [Sum(ring, queues, item) for item in range(count)]
    add_ring_hooks(ring, modules)
    for _ in range(3):
        found = [module() for module in modules]
        assert found == [[(100 + item) * (item + 1), 7 * (item + 0.5)] for item in range(count)]
    copies = [kind for kind, _ in queues.log].count("copy")
    moving = {1: 0, 2: 0, 3: 2}.get(count, count)  # an item that has a slot to itself stays there
    assert copies == min(count, 2) + 3 * moving


def test_a_round_that_was_cut_short_leaves_nothing_wrong_behind() -> None:
    for stop in range(1, 5):
        queues = Queues(early=False)
        ring = Ring(bundles_of(5), queues, 0)
        modules = [Sum(ring, queues, item) for item in range(5)]
        add_ring_hooks(ring, modules)
        for module in modules[:stop]:
            module()
        ring.enter(stop)  # and no more: memory ran out in this one
        assert [module()[0] for module in modules] == [(100 + item) * (item + 1) for item in range(5)]


def test_copies_run_one_ahead_and_no_further() -> None:
    queues = Queues(early=True)
    ring = Ring(bundles_of(4), queues, 10**6)
    modules = [Sum(ring, queues, item) for item in range(4)]
    add_ring_hooks(ring, modules)
    for module in 2 * modules:
        module()
    first, second = dict.fromkeys(slot for _, slot in queues.log)
    ahead = [("copy", first), ("copy", second)]
    use_and_refill = [("use", first), ("copy", first), ("use", second), ("copy", second)]
    assert queues.log == ahead + 4 * use_and_refill


def test_two_items_stay_in_their_slots() -> None:
    queues = Queues(early=True)
    ring = Ring(bundles_of(2), queues, 0)
    modules = [Sum(ring, queues, item) for item in range(2)]
    add_ring_hooks(ring, modules)
    for module in 3 * modules:
        module()
    assert [kind for kind, _ in queues.log].count("copy") == 2


def test_only_what_the_plan_allows_is_pinned() -> None:
    bundles = bundles_of(5)
    size = bundles[0].size
    for room, pinned in ((5 * size, 5), (3 * size + 1, 3), (0, 0)):
        queues = Queues(early=True)
        Ring(bundles, queues, room)
        stages = 0 if pinned == 5 else 2
        assert queues.pinned == (pinned + stages) * size


def test_a_layer_in_pieces_is_the_whole_layer() -> None:
    rows, width = 150, 128
    packed = torch.randint(0, 256, (rows * width // 2, 1), dtype=torch.uint8)
    maxima = torch.rand(rows * width // 64).to(torch.bfloat16)
    cut = split_rows(packed, maxima, rows, 40 * (width // 2 + 4))
    assert [len(scales) * 64 // width for _, scales in cut] == [40, 40, 40, 30]
    pieces = SplitLinear([PlainNF4(*each, len(each[1]) * 64 // width) for each in cut])
    x = torch.randn(3, width).to(torch.bfloat16)
    assert torch.equal(pieces(x), PlainNF4(packed, maxima, rows)(x))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = Gemma2Config(
        num_hidden_layers=LAYERS,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=320,
        vocab_size=4000,  # the head is larger than a layer
        max_position_embeddings=128,
    )
    model = Gemma2ForCausalLM(config)
    for name, parameter in model.named_parameters():  # so that a greedy answer varies
        nn.init.normal_(parameter, std=0.02 if "embed" in name else 0.15)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def plan_of(folder: Path, resident: int | None, *, head_waits: bool = False, host: int = 10**9) -> LoadPlan:
    """A GPU's plan, whatever fits; the attention of this machine."""
    source = resolve(str(folder), revision=None, offline=True)
    preset = "memory" if resident is None else "memory_extreme"
    machine = describe_hardware("cuda", 24 << 30, 24 << 30)
    plan = make_plan(source.facts, preset, machine, Overrides(), load_presets())
    assert plan.streamed
    return replace(
        plan,
        resident_layers=resident,
        host_embedding=resident is not None,
        head_waits=head_waits,
        memory=replace(plan.memory, host_bytes=host),
    )


def watched(model: PreTrainedModel, queues: Queues) -> PreTrainedModel:
    """Each use of the ring's weights becomes known to the queues, before the ring hears that it is over."""
    for module in model.modules():
        if isinstance(module, PlainNF4):
            forward = module.forward

            def told(x: Tensor, forward: Callable = forward, module: PlainNF4 = module) -> Tensor:
                queues.use(module.packed.untyped_storage().data_ptr())
                return forward(x)

            module.forward = told
    return model


def silent(_: object) -> None:
    pass


PROMPT = torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]])


@torch.inference_mode()
def answers(model: PreTrainedModel) -> tuple[Tensor, list[int]]:
    tokens = model.generate(PROMPT, max_new_tokens=6, do_sample=False)[0].tolist()
    return model(PROMPT).logits, tokens


@pytest.fixture(scope="module")
def whole_answers(tiny: Path) -> tuple[Tensor, list[int]]:
    return answers(load_quantized(plan_of(tiny, None), tiny, silent, Queues(early=True)))


@pytest.mark.parametrize(
    ("resident", "head_waits", "host"),
    [(0, True, 10**9), (0, True, 0), (2, False, 10**9), (1, True, 500_000)],
)
def test_answers_do_not_depend_on_where_weights_wait(
    tiny: Path, whole_answers: tuple[Tensor, list[int]], resident: int, head_waits: bool, host: int
) -> None:
    queues = Queues(early=False)
    plan = plan_of(tiny, resident, head_waits=head_waits, host=host)
    model = watched(load_quantized(plan, tiny, silent, queues), queues)
    logits, tokens = answers(model)
    assert torch.equal(logits, whole_answers[0])
    assert tokens == whole_answers[1]
    assert len(set(tokens)) > 10
    assert isinstance(model.lm_head, SplitLinear if head_waits else PlainNF4)


def test_the_ring_takes_two_layers_of_the_device_and_the_rest_of_it_waits(tiny: Path) -> None:
    model = load_quantized(plan_of(tiny, 1, head_waits=True), tiny, silent, Queues(early=True))
    layer = sum(tensor.nbytes for name, tensor in model.model.layers[0].named_buffers())
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in (*model.model.layers[1:], model.lm_head)
        for tensor in module.buffers()
    }
    assert len(storages) == 2
    assert 2 * layer <= sum(storages.values()) <= 2 * layer * 1.02  # each tensor begins at a multiple of 256


def test_scales_are_widened_once_where_all_layers_stay(tiny: Path) -> None:
    kept = load_quantized(plan_of(tiny, 2), tiny, silent, Queues(early=True))
    wide = load_quantized(plan_of(tiny, None), tiny, silent, Queues(early=True))
    name = "model.layers.0.mlp.up_proj.maxima"
    assert (kept.get_buffer(name).dtype, wide.get_buffer(name).dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(kept.get_buffer(name).float(), wide.get_buffer(name))
    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(wide.model.embed_tokens.weight, table)


@pytest.fixture
def cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    yield
    torch.cuda.synchronize()


def on_gpu(folder: Path, resident: int | None, *, head_waits: bool = False, host: int = 10**9) -> LoadPlan:
    plan = plan_of(folder, resident, head_waits=head_waits, host=host)
    return replace(plan, dtype="bfloat16" if probe("cuda").bf16 else "float32")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_home")
@pytest.mark.parametrize(
    ("resident", "head_waits", "host"),
    [(0, True, 10**9), (0, True, 0), (2, False, 10**9), (1, True, 500_000)],
)
def test_on_a_gpu_answers_do_not_depend_on_where_weights_wait(
    tiny: Path, resident: int, head_waits: bool, host: int
) -> None:
    prompt = torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]], device="cuda")
    whole = load_model(on_gpu(tiny, None), tiny, silent)
    waiting = load_model(on_gpu(tiny, resident, head_waits=head_waits, host=host), tiny, silent)
    assert waiting.device.type == whole.device.type == "cuda"
    assert waiting.model.embed_tokens.weight.device.type == "cpu"
    with torch.inference_mode():
        for _ in range(20):  # a race shows now and then
            assert torch.equal(waiting(prompt).logits, whole(prompt).logits)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_home")
def test_on_a_gpu_the_products_are_those_of_the_numbers(tiny: Path) -> None:
    prompt = torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]])
    here = load_quantized(plan_of(tiny, None), tiny, silent, Queues(early=True))
    there = load_model(on_gpu(tiny, None), tiny, silent)
    with torch.inference_mode():
        expected, found = here(prompt).logits.float(), there(prompt.cuda()).logits.float().cpu()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_home")
def test_on_a_gpu_a_step_of_whole_4_bit_weights_can_be_captured(tiny: Path) -> None:
    model = load_model(on_gpu(tiny, None), tiny, silent)
    token = torch.tensor([[17]], device="cuda")
    side = torch.cuda.Stream()
    with torch.inference_mode():
        expected = model(token, use_cache=False).logits.clone()
        with torch.cuda.stream(side):
            model(token, use_cache=False)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(token, use_cache=False).logits
        graph.replay()
    assert torch.equal(logits, expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_home")
def test_on_a_gpu_memory_that_cannot_be_pinned_is_an_error_that_says_so() -> None:
    memory = torch.empty(4096, dtype=torch.uint8)
    link = CudaLink(torch.device("cuda"))
    link.pin(memory)
    with pytest.raises(DoesNotFitError, match="Cannot pin"):
        link.pin(memory)  # twice
    torch.ones(1, device="cuda").sum().item()  # no error is left behind


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_home")
def test_on_a_gpu_the_demo_answers_from_a_ring() -> None:
    prompt = torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]], device="cuda")
    whole, ring = (load_model(on_gpu(DEMO, resident), DEMO, silent) for resident in (None, 1))
    with torch.inference_mode():
        expected = whole.generate(prompt, max_new_tokens=12, do_sample=False)
        assert torch.equal(ring.generate(prompt, max_new_tokens=12, do_sample=False), expected)
