"""Imports torch and transformers without the parts that one process on one machine does not use.

Two thirds of the time of `import transformers.modeling_utils` go to the front end of torch.compile
(`torch._dynamo`), to tensors that are split over processes (`torch.distributed.tensor`, which imports sympy),
and to a second listing of all models in transformers. What uses the first or the last imports it then.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial, wraps
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from threading import Event, RLock, Thread
from types import ModuleType
from typing import Any

from localgemma_cli.environment import torchrun_rank
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.types import DeviceKind

_MODELS = "transformers.modeling_utils"
_STAGE = "starting PyTorch"
_MODULES = 1800  # that are imported at the end, about
_REPORT_SECONDS = 0.1
# What transformers imports from dynamo, and what it decorates functions with, while it is imported.
_DYNAMO_PARTS = ("_trace_wrapped_higher_order_op",)
_DYNAMO_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
_lock = RLock()


def import_frameworks(progress: ProgressSink, device: DeviceKind) -> None:
    """Import torch, and from transformers what every model needs; on a CPU, only what is needed there."""
    with _uncollected(), _reporting(progress):
        # What compiles and records steps on a GPU uses nearly all of torch.
        if device != "cpu" or "torch" in sys.modules or torchrun_rank(os.environ) is not None:
            import_module(_MODELS)
            return
        Thread(target=link_torch, daemon=True).start()
        import_module("transformers.utils.import_utils")  # it does not import torch
        torch = import_module("torch")
        try:
            _import_lean(torch)
        except Exception:  # a version of torch or transformers that this does not suit
            _forget_transformers()
            import_module(_MODELS)


def link_torch() -> None:
    """Let Linux load and link torch's libraries: a third of a second that does not need Python's lock."""
    spec = find_spec("torch")
    if sys.platform != "linux" or spec is None or spec.origin is None:
        return
    folder = os.path.join(os.path.dirname(spec.origin), "lib")
    dlopen = ctypes.CDLL(None).dlopen  # ctypes.CDLL(path) would hold the lock
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    # in the order and with the visibility in which torch loads them itself
    for name, visibility in (("global_deps", os.RTLD_GLOBAL), ("python", os.RTLD_LOCAL)):
        if not dlopen(f"{folder}/libtorch_{name}.so".encode(), os.RTLD_LAZY | visibility):
            return  # torch's own import says why


@contextmanager
def _reporting(progress: ProgressSink) -> Iterator[None]:
    """Report how many modules are imported, in a thread: a stop must not interrupt an import."""
    ended, before = Event(), len(sys.modules)
    total = max(_MODULES - before, 1)

    def report() -> None:
        with suppress(BaseException):  # raised to stop the load, which ends after the imports
            while not ended.wait(_REPORT_SECONDS):
                done = min(len(sys.modules) - before, total - 1)
                progress(LoadProgress(_STAGE, done, total, "modules"))

    progress(LoadProgress(_STAGE))
    thread = Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without garbage collection, a fifth of the time, and exempt from it what is imported."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _import_lean(torch: ModuleType) -> None:
    dynamo = defer_package("torch._dynamo", _DYNAMO_PARTS)
    for name in _DYNAMO_DECORATORS:
        vars(dynamo).setdefault(name, decorate_later(dynamo, name))
    defer_package("transformers.models")
    import_utils = sys.modules["transformers.utils.import_utils"]
    _deny_distributed(torch.distributed, import_utils.is_torch_distributed_available)
    import_module(_MODELS)


def _deny_distributed(distributed: ModuleType, is_available: Callable[[], bool]) -> None:
    """Let `is_available` of transformers, which asks torch once and keeps the answer, keep a no."""
    real = distributed.is_available
    distributed.is_available = lambda: False  # type: ignore[attr-defined]
    try:
        is_available()
    finally:
        distributed.is_available = real  # type: ignore[attr-defined]


def _forget_transformers() -> None:
    """Drop what was imported of transformers, for another import without these shortcuts."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        del sys.modules[name]
    dynamo = sys.modules.get("torch._dynamo")
    if isinstance(dynamo, DeferredPackage):
        dynamo.run()


class DeferredPackage(ModuleType):
    """A package whose own code runs when something reads an attribute that it does not have yet.

    Unlike with `importlib.util.LazyLoader`, submodules can be imported before that.
    """

    _is_running = False

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if self._is_running:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            return getattr(self.run(), name)

    def run(self) -> ModuleType:
        """Run the package's code unless it has run; return the module that it made, which may be another."""
        with _lock:
            if type(self) is DeferredPackage:
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self._is_running = True
                self.__path__ = self.__spec__.submodule_search_locations or []
                try:
                    self.__spec__.loader.exec_module(self)
                finally:
                    del self._is_running
                self.__class__ = ModuleType  # type: ignore[assignment]
                if (made := sys.modules[self.__name__]) is not self:
                    vars(self)["__getattr__"] = partial(getattr, made)
        return sys.modules[self.__name__]


def defer_package(name: str, parts: Sequence[str] | None = None) -> ModuleType:
    """Import a package as a `DeferredPackage`; one that is imported already stays as it is.

    Its submodules `parts` are imported now, without the package's code, which runs before any other; None:
    each of them can be imported without it.
    """
    if name not in sys.modules:
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(name)
        package = module_from_spec(spec)
        package.__class__ = DeferredPackage
        parent, _, own = name.rpartition(".")
        sys.modules[name] = package
        setattr(sys.modules[parent], own, package)
        if parts is not None:
            for part in parts:
                import_module(f"{name}.{part}")
            vars(package).pop("__path__", None)  # what looks for another submodule reads it
    return sys.modules[name]


def decorate_later(package: ModuleType, name: str) -> Callable[..., Any]:
    """The decorator `package.NAME`, applied to a function at the first call after the package's code has run.

    Before, nothing compiles, and a function that is decorated for compilation runs as it is.
    """

    def decorate(function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if function is None:
            return lambda function: decorate(function, *args, **kwargs)

        @cache
        def decorated() -> Callable[..., Any]:
            result: Callable[..., Any] = getattr(package, name)(function, *args, **kwargs)
            return result

        @wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            called = function if isinstance(package, DeferredPackage) else decorated()
            return called(*values, **named)

        return call

    return decorate
