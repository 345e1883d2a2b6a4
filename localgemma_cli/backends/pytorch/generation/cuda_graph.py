"""The one-token step as a CUDA graph, which replays all its kernels with one launch per token.

Only over a preallocated cache: a graph reads and writes the addresses that it was recorded with.
"""

import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch
from transformers.cache_utils import Cache

from localgemma_cli.backends.pytorch.generation.kv_cache import PreallocatedLayer
from localgemma_cli.environment import cache_folder, is_ours, make_private
from localgemma_cli.errors import first_line

Step = Callable[[torch.Tensor, Cache], torch.Tensor]  # token [1, 1] -> logits [1, vocabulary], float32
Run = Callable[[], torch.Tensor]
StepRecorder = Callable[[Run, Callable[[], None]], Run]  # (what to record, its warm-up) -> its replay

_WARM_UPS = 2  # runs that choose kernels and allocate workspaces, which must not be recorded
_SWITCH_INTERVAL = 0.0005  # seconds; with Python's 5 ms the answer waits too long for the compiler
_log = logging.getLogger(__name__)


def unrecorded(run: Run, warm_up: Callable[[], None]) -> Run:
    """Record nothing: run the step itself, for devices without graphs."""
    warm_up()
    return run


class CudaGraphRecorder:
    """Records a run as one CUDA graph; its output has a fixed address and is valid until the next replay."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # shared, since each stream keeps a cuBLAS workspace

    def __call__(self, run: Run, warm_up: Callable[[], None]) -> Run:
        current = torch.cuda.current_stream()
        with torch.cuda.stream(current):  # restores the stream if the recording fails
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                warm_up()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def recorder_for(device: torch.device) -> StepRecorder:
    return CudaGraphRecorder() if device.type == "cuda" else unrecorded


class BackgroundCompiler:
    """Compiles a step in a thread, for one cache capacity after the other, over scratch caches."""

    def __init__(self, step: Step, compile_step: Callable[[Step], Step] | None = None) -> None:
        self._step, self._compile_step = step, compile_step or _inductor
        self._compiled: Step | None = None
        self._ready: set[int] = set()
        self._failed = False
        self._thread: Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def ready(self, cache: Cache) -> Step | None:
        """The compiled step, if it is ready for caches of this capacity."""
        return self._compiled if _capacity(cache) in self._ready and not self._failed else None

    def start(self, cache: Cache) -> None:
        """Compile for caches like this one, unless that is done, is running, or failed before."""
        if not self._failed and not self.busy and _capacity(cache) not in self._ready:
            # a daemon, so that the program can exit meanwhile
            arguments = (len(cache.layers), _capacity(cache), cache.layers[0].device)
            self._thread = Thread(target=self._make, args=arguments, name="compile", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def give_up(self, error: Exception) -> None:
        self._failed = True
        _log.warning("localgemma: compilation failed, continuing without it: %s", first_line(error))

    @torch.inference_mode()
    def _make(self, layers: int, capacity: int, device: torch.device) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        try:
            if self._compiled is None:
                self._compiled = self._compile_step(self._step)
            scratch = Cache(layers=[PreallocatedLayer(capacity) for _ in range(layers)])
            token = torch.zeros((1, 1), dtype=torch.int64, device=device)
            self._step(token, scratch)  # the first call allocates, which must not be compiled
            self._compiled(token, scratch)
            self._ready.add(capacity)
        except Exception as error:  # no failure here may end the answer that is streaming
            self.give_up(error)
        finally:
            sys.setswitchinterval(interval)


@dataclass(frozen=True)
class _Recording:
    step: Step
    cache: weakref.ref[Cache]  # weak, so that a replaced cache is freed
    token: torch.Tensor  # the recorded step's input
    run: Run


class RecordedStep:
    """Records the step once per cache and replays it; uses the compiled step as soon as it is ready.

    Nothing is recorded during compilation, which may synchronize the device and so break a recording.
    """

    def __init__(self, step: Step, record: StepRecorder, compiler: BackgroundCompiler | None = None) -> None:
        self._plain, self._record, self.compiler = step, record, compiler
        self._recording: _Recording | None = None

    def __call__(self, token: torch.Tensor, cache: Cache) -> torch.Tensor:
        compiled = self.compiler.ready(cache) if self.compiler else None
        step, recording = compiled or self._plain, self._recording
        if recording is None or recording.step is not step or recording.cache() is not cache:
            if self.compiler and self.compiler.busy:
                return self._plain(token, cache)
            try:
                recording = self._make(step, token, cache)
            except Exception as error:
                if compiled is None or self.compiler is None:
                    return self._unrecorded(token, cache, error)
                self.compiler.give_up(error)
                return self(token, cache)
            if self.compiler:
                self.compiler.start(cache)
        recording.token.copy_(token)
        return recording.run()

    def wait(self) -> None:
        """Wait for the compilation; the next step uses its result."""
        if self.compiler:
            self.compiler.wait()

    def _make(self, step: Step, token: torch.Tensor, cache: Cache) -> _Recording:
        """Record the step; of `cache`, only the slot that `token` is written to next is changed."""
        self._recording = None  # first, to free its memory
        held = token.clone()
        lengths = [layer.cumulative_length for layer in cache.layers]
        before = [length.clone() for length in lengths]

        def run() -> torch.Tensor:
            return step(held, cache)

        def rewind() -> None:
            for length, value in zip(lengths, before, strict=True):
                length.copy_(value)

        def warm_up() -> None:
            for _ in range(_WARM_UPS):
                run()
                rewind()

        try:
            again = self._record(run, warm_up)
        finally:
            rewind()
        self._recording = _Recording(step, weakref.ref(cache), held, again)
        return self._recording

    def _unrecorded(self, token: torch.Tensor, cache: Cache, error: Exception) -> torch.Tensor:
        if self._record is not unrecorded:
            self._record = unrecorded
            _log.warning(
                "localgemma: cannot record a CUDA graph, continuing without it (slower): %s",
                first_line(error),
            )
        return self._plain(token, cache)


def _capacity(cache: Cache) -> int:
    capacity: int = cache.layers[0].max_cache_len
    return capacity


def _inductor(step: Step) -> Step:
    """Compile with inductor, without its CUDA graphs, which work in one thread only; cached on disk."""
    folder = make_private(cache_folder() / "compiled")
    if not is_ours(folder.stat()):  # another user could put code there
        folder = Path(tempfile.mkdtemp())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    compiled: Step = torch.compile(step, fullgraph=True, dynamic=False)
    return compiled
