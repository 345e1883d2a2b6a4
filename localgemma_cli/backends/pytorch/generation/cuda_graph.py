"""The one-token step, recorded: a CUDA graph replays its kernels, and the host launches one thing per token.

Over a preallocated cache only: a graph reads and writes the addresses that it was recorded with.
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

Step = Callable[[torch.Tensor, Cache], torch.Tensor]  # token [1, 1] -> logits [1, vocabulary], float32
Run = Callable[[], torch.Tensor]
Recorder = Callable[[Run, Callable[[], None]], Run]  # (what to record, its warm-up) -> how to run it again

_WARM_UPS = 2  # kernels are chosen and workspaces made in the first runs, which a graph must not hold
_YIELDS = 0.0005  # seconds; by Python's default the answer would wait 5 ms for the compiler at each operation
_log = logging.getLogger(__name__)


def unrecorded(run: Run, warm_up: Callable[[], None]) -> Run:
    """Where there are no graphs: the step itself."""
    warm_up()
    return run


class CudaRecorder:
    """Records what runs as one CUDA graph; its output lies at one address, and holds until the next run."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # one for all: each stream keeps a cuBLAS workspace

    def __call__(self, run: Run, warm_up: Callable[[], None]) -> Run:
        current = torch.cuda.current_stream()
        with torch.cuda.stream(current):  # a recording that fails leaves its own stream current
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


def recorder(device: torch.device) -> Recorder:
    return CudaRecorder() if device.type == "cuda" else unrecorded


class BackgroundCompiler:
    """Compiles a step in a thread, for one cache length after the other, over scratch caches of its own."""

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
        """The compiled step, where it has been made for caches of this length."""
        return self._compiled if _capacity(cache) in self._ready and not self._failed else None

    def start(self, cache: Cache) -> None:
        """Compile for caches like this one, unless that is done, under way, or failed before."""
        if not self._failed and not self.busy and _capacity(cache) not in self._ready:
            # a daemon: leaving the program does not wait for it
            arguments = (len(cache.layers), _capacity(cache), cache.layers[0].device)
            self._thread = Thread(target=self._make, args=arguments, name="compile", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def give_up(self, error: Exception) -> None:
        self._failed = True
        _log.warning("localgemma: compiling failed, so answers come uncompiled: %s", _line(error))

    @torch.inference_mode()
    def _make(self, layers: int, capacity: int, device: torch.device) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_YIELDS)
        try:
            if self._compiled is None:
                self._compiled = self._compile_step(self._step)
            scratch = Cache(layers=[PreallocatedLayer(capacity) for _ in range(layers)])
            token = torch.zeros((1, 1), dtype=torch.int64, device=device)
            self._step(token, scratch)  # the first call allocates, which is not to be compiled
            self._compiled(token, scratch)
            self._ready.add(capacity)
        except Exception as error:  # whatever it was, the answer that streams meanwhile must not end
            self.give_up(error)
        finally:
            sys.setswitchinterval(interval)


@dataclass(frozen=True)
class _Recording:
    step: Step
    cache: weakref.ref[Cache]  # weak: a cache that was replaced frees its memory
    token: torch.Tensor  # what the recorded step reads
    run: Run


class RecordedStep:
    """A step recorded once per cache and replayed; the compiled one as soon as there is one.

    Nothing is recorded while something is compiled: a device-wide wait there would break the recording.
    """

    def __init__(self, step: Step, record: Recorder, compiler: BackgroundCompiler | None = None) -> None:
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
        """Until nothing is being compiled; what was, runs from the next step on."""
        if self.compiler:
            self.compiler.wait()

    def _make(self, step: Step, token: torch.Tensor, cache: Cache) -> _Recording:
        """Leaves `cache` as it was, but for the slot that `token` is written to next anyway."""
        self._recording = None  # first: its memory is needed
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
            _log.warning("localgemma: no CUDA graph of this model, so answers come slower: %s", _line(error))
        return self._plain(token, cache)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _capacity(cache: Cache) -> int:
    capacity: int = cache.layers[0].max_cache_len
    return capacity


def _inductor(step: Step) -> Step:
    """Without inductor's own CUDA graphs, which belong to one thread; compiled code is kept on disk."""
    folder = make_private(cache_folder() / "compiled")
    if not is_ours(folder.stat()):  # others could put code there
        folder = Path(tempfile.mkdtemp())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    compiled: Step = torch.compile(step, fullgraph=True, dynamic=False)
    return compiled
