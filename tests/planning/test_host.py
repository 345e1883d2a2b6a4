"""The host's figures, from files as Linux writes them and from this machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localgemma_cli.environment import hub_cache
from localgemma_cli.planning.host import (
    CPU_BF16_FLAGS,
    HostMemory,
    cgroup_memory,
    disk_free,
    flags_in,
    host_memory,
)

GIB = 1 << 30


def cgroup(folder: Path, limit: str, usage: int, **stat: int) -> None:
    """A v2 cgroup's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()))


def test_a_container_sees_its_own_limit_and_droppable_cache_is_free(tmp_path):
    cgroup(tmp_path, str(8 * GIB), 3 * GIB, anon=2 * GIB, inactive_file=GIB)
    assert cgroup_memory("0::/\n", tmp_path) == HostMemory(8 * GIB, 6 * GIB)


def test_the_lowest_of_nested_limits_applies(tmp_path):
    cgroup(tmp_path / "user" / "app", "max", GIB)
    cgroup(tmp_path / "user", str(4 * GIB), 3 * GIB)
    assert cgroup_memory("0::/user/app\n", tmp_path) == HostMemory(4 * GIB, GIB)


def test_cgroup_v1_is_read_too(tmp_path):
    folder = tmp_path / "memory" / "docker" / "abc"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {GIB // 2}\n")
    membership = "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n"
    assert cgroup_memory(membership, tmp_path) == HostMemory(2 * GIB, GIB * 3 // 2)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_memory(membership, tmp_path) is None


@pytest.mark.parametrize("membership", ["", "0::/somewhere/else\n", "1:name=systemd:/\n"])
def test_no_limit_is_none(tmp_path, membership):
    assert cgroup_memory(membership, tmp_path) is None


def test_memory_is_at_most_what_the_system_reports():
    memory, system = host_memory(), psutil.virtual_memory()
    assert 0 < memory.free <= memory.total <= system.total


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_HOME": "/data/hf"},
        {"HF_HOME": "$HOME/hf"},
        {"XDG_CACHE_HOME": "/data/cache"},
        {"HUGGINGFACE_HUB_CACHE": "/data/old"},
        {"HF_HUB_CACHE": "~/weights", "HF_HOME": "/data/hf"},
        {"HF_HUB_CACHE": "/data/$USER_FOLDER", "USER_FOLDER": "me"},
    ],
)
def test_the_hub_cache_is_where_huggingface_hub_puts_it(environ, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    script = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(hub_cache(os.environ)) == printed.stdout.strip()


def test_free_disk_space_is_that_of_the_nearest_existing_folder(tmp_path):
    assert disk_free(tmp_path / "not" / "yet" / "made") == pytest.approx(disk_free(tmp_path), rel=0.01)


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\n", True),
        ("flags\t\t: fpu avx2 avx512f amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_read_off_the_processors_flags(cpuinfo, bf16):
    assert bool(flags_in(cpuinfo) & CPU_BF16_FLAGS) is bf16
