"""CUDA graphs on a CPU, for tests: operators are recorded once and replayed on the same memory, without any Python.

As with a real graph a replay reads what lies at the recorded addresses now, and overwrites the outputs of the last one.
Unlike one it never shares the memory of what is freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph:
    replays = 0
    """Of all graphs of the process; tests set it to 0."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        with _Recorder(self.calls):
            yield

    def replay(self) -> None:
        RecordedGraph.replays += 1
        with torch.no_grad():
            for func, args, kwargs, outputs in self.calls:
                for new, static in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(outputs), strict=True):
                    # Equal addresses: a view of an argument, or an argument changed in place.
                    if isinstance(static, torch.Tensor) and new.data_ptr() != static.data_ptr():
                        static.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled layers are recorded by what they run, if that is operators: backend="aot_eager"."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs
