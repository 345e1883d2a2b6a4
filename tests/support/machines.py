"""Fixtures: a few machines for the tests of the planner and of models."""

from dataclasses import replace
from pathlib import Path

import pytest

from localgemma_cli.planning.hardware import GIB, Ability, Hardware, describe_hardware
from localgemma_cli.planning.presets import Presets, load_presets


@pytest.fixture
def presets(tmp_path: Path) -> Presets:
    """The built-in presets, without those of the user who runs the tests."""
    return load_presets(tmp_path / "none")


@pytest.fixture
def gpu() -> Hardware:
    return describe_hardware("cuda", 24 * GIB, 64 * GIB)


@pytest.fixture
def small_gpu() -> Hardware:
    return describe_hardware("cuda", 8 * GIB, 64 * GIB)


@pytest.fixture
def turing() -> Hardware:
    return describe_hardware("cuda", 16 * GIB, 64 * GIB, compute_capability=(7, 5))


@pytest.fixture
def server_cpu() -> Hardware:
    yes = Ability(True, "the processor has bfloat16 instructions")
    return replace(
        describe_hardware("cpu", None, 64 * GIB),
        bf16=yes,
        nf4=yes,
        int8=yes,
        nf4_kernel=yes,
        int4=yes,
        bf16_widened=False,
        extension=Ability(True, ""),
    )


@pytest.fixture
def desktop_cpu(server_cpu: Hardware) -> Hardware:
    """With AVX2 but not AVX-512, like most."""
    no = Ability(False, "the fast NF4 kernel needs a processor with AVX512-BF16")
    return replace(
        server_cpu,
        bf16=Ability(False, "the processor has no bfloat16 instructions"),
        nf4_kernel=no,
        bf16_widened=True,
    )


@pytest.fixture
def arm_cpu(desktop_cpu: Hardware) -> Hardware:
    """Quantized weights are unpacked at each step."""
    missing = Ability(False, "the C extension needs a processor with AVX2")
    return replace(desktop_cpu, bf16_widened=False, extension=missing)


@pytest.fixture
def old_cpu(server_cpu: Hardware) -> Hardware:
    no = Ability(False, "bitsandbytes needs AVX2 on this processor")
    return replace(
        server_cpu,
        bf16=Ability(False, "the processor has no bfloat16 instructions"),
        nf4=no,
        int8=no,
        nf4_kernel=no,
    )


@pytest.fixture
def mac() -> Hardware:
    return describe_hardware("mps", None, 24 * GIB)
