"""Read by every Python process of an application under test: lets a file in ACESTEP_FAULTS make a fault happen in it.

`out-of-memory`, `sticky`, `nan` and `hang` happen once, in the next forward of a Generator; `clock` holds by how many
seconds the clocks of all processes are ahead.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ["ACESTEP_FAULTS"])


def _happens(fault: str) -> bool:
    try:
        (FOLDER / fault).unlink()
    except FileNotFoundError:
        return False
    return True


def _change(engine: ModuleType) -> None:
    import torch

    forward = engine.Engine._forward

    def staged(self: Any, requests: Sequence[Any]) -> Any:
        if _happens("out-of-memory"):
            raise torch.OutOfMemoryError("staged: no room for this forward")
        if _happens("sticky"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered (staged)")
        if _happens("hang"):
            threading.Event().wait()
        if _happens("nan"):
            return _spoilt(self, forward, requests)
        return forward(self, requests)

    engine.Engine._forward = staged


def _spoilt(engine: Any, forward: Callable[[Any, Sequence[Any]], Any], requests: Sequence[Any]) -> Any:
    """A forward in which the transformer answers NaN, in this thread alone."""
    healthy, here = engine.batch.forward, threading.get_ident()

    def spoil(shares: Any) -> Any:
        factor = float("nan") if threading.get_ident() == here else 1.0
        return [[one * factor for one in each] for each in healthy(shares)]

    engine.batch.forward = spoil
    try:
        return forward(engine, requests)
    finally:
        engine.batch.forward = healthy


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "acestep_engine.engine":
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Changed(spec.loader)
        return spec


class _Changed(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _change(module)


def _shift_clock() -> None:
    true_time = time.time

    def shifted() -> float:
        try:
            return true_time() + float((FOLDER / "clock").read_text())
        except (OSError, ValueError):
            return true_time()

    time.time = shifted


sys.meta_path.insert(0, _Finder())
_shift_clock()
