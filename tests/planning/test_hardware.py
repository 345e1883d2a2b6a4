"""Detected and described hardware; nothing here needs a GPU or imports torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.planning.hardware import (
    GIB,
    Ability,
    apple_gpu,
    describe_hardware,
    parse_size,
    probe,
    probe_or_describe,
    torch_has_cuda,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("16g", 16 * 2**30),
        ("1.5 gib", 3 * 2**29),
        ("512MiB", 2**29),
        ("2tb", 2 * 10**12),
    ],
)
def test_sizes_are_parsed_in_decimal_and_binary_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["9" * 500 + "GiB", "", "24", "GiB", "-1GiB", "0GiB", "24 gigs", "1e3GB", "24GiBs", "nanGiB"]
)
def test_an_invalid_size_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="Invalid amount of memory") as caught:
        parse_size(text)
    assert "24GiB" in caught.value.hint


def test_this_machines_cpu_is_detected():
    cpu = probe("cpu")
    assert cpu.device == "cpu"
    assert cpu.name
    assert 0 < cpu.device_memory_free <= cpu.device_memory_total
    assert (cpu.device_memory_total, cpu.device_memory_free) == (cpu.host_memory_total, cpu.host_memory_free)
    assert cpu.disk_free > 0
    assert cpu.bf16.why


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="--device cannot be 'gpu'"):
        probe("gpu")


def test_hidden_gpus_are_not_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="No NVIDIA GPU") as caught:
        probe("cuda")
    assert "--device-memory" in caught.value.hint


@pytest.mark.gpu
def test_a_real_gpu_is_seen_as_torch_sees_it():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    gpu, real = probe("cuda"), torch.cuda.get_device_properties(0)
    assert (gpu.name, gpu.compute_capability) == (real.name, (real.major, real.minor))
    assert gpu.device_memory_total == pytest.approx(real.total_memory, rel=0.03)
    assert gpu.gpu_count == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("capability", "bf16", "nf4", "int8"),
    [
        ((9, 0), True, True, True),
        ((8, 0), True, True, True),
        ((7, 5), False, True, True),
        ((7, 0), False, True, False),
        ((5, 2), False, False, False),
    ],
)
def test_a_gpus_abilities_follow_from_its_compute_capability(capability, bf16, nf4, int8):
    gpu = describe_hardware("cuda", 24 * GIB, 64 * GIB, compute_capability=capability)
    assert (bool(gpu.bf16), bool(gpu.nf4), bool(gpu.int8)) == (bf16, nf4, int8)
    assert f"{capability[0]}.{capability[1]}" in gpu.bf16.why


def test_int4_works_on_every_cpu_and_only_there():
    assert probe("cpu").int4
    assert not describe_hardware("cuda", 24 * GIB, None).int4
    assert not describe_hardware("mps", None, 24 * GIB).int4


def test_a_described_gpu_has_the_given_memory_and_this_machines_host():
    gpu = describe_hardware("cuda", 24 * GIB, None)
    assert (gpu.device_memory_total, gpu.device_memory_free) == (24 * GIB, 24 * GIB)
    assert gpu.host_memory_total == probe("cpu").host_memory_total
    assert describe_hardware("cuda", 24 * GIB, 8 * GIB).host_memory_free == 8 * GIB


def test_a_described_gpu_needs_a_memory_size():
    with pytest.raises(UsageError, match="memory of the CUDA device is unknown"):
        describe_hardware("cuda", None, 64 * GIB)


@pytest.mark.parametrize(("host", "device"), [(24, 16), (96, 72)])
def test_a_macs_gpu_can_use_part_of_its_memory(host, device):
    mac = describe_hardware("mps", None, host * GIB)
    assert (mac.device, mac.device_memory_free) == ("mps", device * GIB)
    assert mac.bf16
    assert mac.nf4


def test_a_busy_or_old_mac_offers_less():
    busy = replace(describe_hardware("cpu", None, 24 * GIB), host_memory_free=5 * GIB)
    assert apple_gpu(busy, macos=15).device_memory_free == 5 * GIB
    old = apple_gpu(busy, macos=13)
    assert not any((old.bf16, old.nf4, old.int8))
    assert "macOS 13" in old.nf4.why


def test_the_build_of_torch_is_read_without_importing_it():
    import torch

    assert torch_has_cuda() == (torch.version.cuda is not None)


def test_a_described_cpu_has_one_memory():
    cpu = describe_hardware("cpu", None, 32 * GIB)
    assert (cpu.device_memory_free, cpu.host_memory_free) == (32 * GIB, 32 * GIB)


def test_caps_only_lower_what_is_free():
    gpu = describe_hardware("cuda", 24 * GIB, 64 * GIB)
    assert gpu.capped(None, None) == gpu
    assert gpu.capped(99 * GIB, 99 * GIB) == gpu
    capped = gpu.capped(8 * GIB, 4 * GIB)
    assert (capped.device_memory_free, capped.host_memory_free) == (8 * GIB, 4 * GIB)
    assert capped.device_memory_total == 24 * GIB


def test_on_a_cpu_either_cap_is_the_cap():
    cpu = describe_hardware("cpu", None, 32 * GIB)
    assert cpu.capped(None, 4 * GIB).device_memory_free == 4 * GIB
    assert cpu.capped(8 * GIB, None).device_memory_free == 8 * GIB


def test_without_options_the_plan_is_for_this_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = probe()
    assert replace(
        probe_or_describe(None, None, None), host_memory_free=0, device_memory_free=0, disk_free=0
    ) == replace(here, host_memory_free=0, device_memory_free=0, disk_free=0)
    assert probe_or_describe("cuda", 24 * GIB, None).device_memory_free == 24 * GIB
    assert probe_or_describe("cpu", None, 32 * GIB).device_memory_free == 32 * GIB
    assert probe_or_describe(None, None, 32 * GIB).host_memory_free == 32 * GIB
    if here.device == "cpu":
        assert probe_or_describe(None, 24 * GIB, None).device == "cuda"


def test_an_ability_is_a_condition_with_a_reason():
    assert Ability(True, "since")
    assert not Ability(False, "since")


def test_planning_imports_neither_torch_nor_rich():
    script = """
import sys
from localgemma_cli.models.catalog import catalogue
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, plan_all
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.plan import plan_text
print(plan_text(plan_all(probe(), Overrides(), load_presets())[0], 80))
loaded = {"torch", "transformers", "accelerate", "bitsandbytes", "numpy", "rich"} & set(sys.modules)
sys.exit(f"imported {loaded}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model")
