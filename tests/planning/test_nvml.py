"""Which GPUs CUDA would show; the library calls run against a stand-in built from nvml.h's own signatures."""

import shutil
import subprocess
from pathlib import Path

import pytest

from localgemma_cli.planning.nvml import Gpu, select_visible, visible_gpus

SMALL = Gpu("GPU-aaaa-1", "small", 8, 7, (7, 5))
LARGE = Gpu("GPU-bbbb-2", "large", 80, 79, (9, 0))
SLICE = Gpu("MIG-cccc-3", "slice", 10, 9, (9, 0))
IN_BUS_ORDER = (SMALL, LARGE)


@pytest.mark.parametrize(
    ("environ", "visible"),
    [
        ({}, (LARGE, SMALL)),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, (SMALL, LARGE)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (SMALL,)),
        ({"CUDA_VISIBLE_DEVICES": "1, 0"}, (SMALL, LARGE)),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, (SMALL,)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, (SMALL,)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-cccc-3"}, (SLICE,)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-none"}, ()),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, (LARGE,)),
    ],
)
def test_environment_variables_select_gpus_as_in_cuda(environ, visible):
    assert select_visible(IN_BUS_ORDER, environ, {SLICE.uuid: SLICE}.get) == visible


def test_without_a_driver_there_is_no_gpu():
    assert visible_gpus({}, library="libthat-is-not-there.so") == ()


STAND_IN = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
static const char *uuids[] = {"GPU-aaaa-1", "GPU-bbbb-2", "MIG-cccc-3"};
static const char *names[] = {"small", "large", "slice"};
static const unsigned long long gib[] = {8, 80, 10};
static int handles[3];
static long which(void *device) { return (int *)device - handles; }
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = &handles[index]; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (strcmp(uuid, uuids[2])) return 6;
  *device = &handles[2]; return 0; }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *slice, void **device) {
  *device = &handles[1]; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) {
  memory->total = gib[which(device)] << 30; memory->used = 1ull << 30;
  memory->free = memory->total - memory->used; return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned int size) {
  strncpy(text, uuids[which(device)], size); return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned int size) {
  strncpy(text, names[which(device)], size); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  if (which(device) == 2) return 3;
  *major = which(device) ? 9 : 7; *minor = which(device) ? 0 : 5; return 0; }
"""


def stand_in(folder: Path, code: int) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = folder / "nvml.c", folder / "libnvml.so"
    source.write_text(STAND_IN)
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DINIT={code}", "-o", library, source], check=True, timeout=600
    )
    return str(library)


def test_gpus_are_read_through_the_library(tmp_path):
    library = stand_in(tmp_path, code=0)
    small = Gpu("GPU-aaaa-1", "small", 8 << 30, 7 << 30, (7, 5))
    large = Gpu("GPU-bbbb-2", "large", 80 << 30, 79 << 30, (9, 0))
    slice_ = Gpu("MIG-cccc-3", "slice", 10 << 30, 9 << 30, (9, 0))
    assert visible_gpus({}, library) == (large, small)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-cccc-3,0"}, library) == (slice_, large)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-dddd"}, library) == ()


def test_a_failing_driver_means_no_gpu(tmp_path):
    assert visible_gpus({}, stand_in(tmp_path, code=9)) == ()
