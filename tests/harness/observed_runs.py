"""Runs that count events within training steps: reductions, gathers, reads and waits."""

from __future__ import annotations

from typing import Any

from harness.programs import train


def train_noting_reductions(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Run `train` without DeepSpeed. Note for each micro-step whether ranks exchange gradients."""
    from transformers import Trainer

    noted: list[bool] = []
    micro_step = Trainer.training_step

    def noting(self: Any, model: Any, batch: Any, targets: Any) -> Any:
        noted.append(model.require_backward_grad_sync)
        return micro_step(self, model, batch, targets)

    Trainer.training_step = noting  # type: ignore[method-assign]
    return train(words, **options) | {"reductions": noted}


def train_counting_gathers(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Run `train` under ZeRO-3 and count how often weights are gathered, by shape."""
    from collections import Counter

    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    gathers: Counter[str] = Counter()
    name = "_PartitionedParameterCoordinator__all_gather_params"
    gather = getattr(Coordinator, name)

    def counting(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        gathers.update(str(tuple(param.ds_shape)) for param in params)
        return gather(self, params, *args, **kwargs)

    setattr(Coordinator, name, counting)
    return train(words, **options) | {"gathers": dict(gathers)}


def train_counting_reads(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Run `train` and count, by optimizer step, how often Python reads a value out of a tensor.

    On a GPU each read would wait. Two reads are not counted: AdamW's step numbers, which are always
    on the host, and the flag that is deferred on a GPU. `unmoved` counts the tensors that the
    Trainer itself moves to the device, which waits.
    """
    import sys
    from collections import Counter

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from wikillm.train import trainer as module
    from wikillm.train.trainer import WikiTrainer

    reads: Counter[int] = Counter()
    moved: set[int] = set()
    found = {"unmoved": 0}

    class Counting(TorchDispatchMode):
        def __init__(self, trainer: WikiTrainer) -> None:
            super().__init__()
            self.trainer = trainer

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and not self._is_on_the_host():
                reads[self.trainer.state.global_step] += 1
            return func(*args, **kwargs or {})

        def _is_on_the_host(self) -> bool:
            frame = sys._getframe(2)
            while frame is not None:
                if frame.f_code.co_filename.endswith(
                    ("torch/optim/adamw.py", "torch/optim/adam.py")
                ):
                    return True
                if frame.f_code.co_qualname.startswith("DeferredFlag."):
                    return True
                frame = frame.f_back  # type: ignore[assignment]
            return False

    train_loop = WikiTrainer.train
    prepare = WikiTrainer._prepare_input
    to_device = module.to_device

    def counted_loop(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        with Counting(self):
            return train_loop(self, *args, **kwargs)

    def noting_moves(batch: Any, device: Any) -> Any:
        out = to_device(batch, device)
        moved.update(id(value) for value in out.values())
        return out

    def noting_others(self: WikiTrainer, data: Any) -> Any:
        found["unmoved"] += isinstance(data, torch.Tensor) and id(data) not in moved
        return prepare(self, data)

    WikiTrainer.train = counted_loop  # type: ignore[method-assign]
    WikiTrainer._prepare_input = noting_others  # type: ignore[method-assign]
    module.to_device = noting_moves
    return train(words, **options) | {"reads": dict(reads)} | found


def train_noting_waits(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Run `train` on a GPU in torch's sync debug mode from step 2 on. Return the waits by step."""
    import traceback
    import warnings
    from collections import defaultdict

    import torch

    from wikillm.train.trainer import WikiTrainer

    waits: dict[int, list[str]] = defaultdict(list)
    begun: list[WikiTrainer] = []
    training_step = WikiTrainer.training_step

    def noting(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        if not begun and self.state.global_step == 1:
            begun.append(self)
            torch.cuda.set_sync_debug_mode("warn")
        return training_step(self, *args, **kwargs)

    def show(message: Any, *_: Any, **__: Any) -> None:
        if begun and "synchronizing" in str(message):
            waits[begun[0].state.global_step].append("".join(traceback.format_stack(limit=6)))

    WikiTrainer.training_step = noting  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        found = train(words, **options)
    return found | {"waits": dict(waits)}
