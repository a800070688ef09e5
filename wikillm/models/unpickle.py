"""Restricts `torch.load` to tensors, plain values and a few named classes.

DeepSpeed's partitions and Hugging Face's optimizer states are pickles, and loading a pickle can run
any code that its author put in. A verified manifest proves only that the files did not change since
they were written, not that they are harmless. DeepSpeed loads with `weights_only=False`;
`only_known_classes` overrides that for a block.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from wikillm.core.errors import CheckpointError

KNOWN = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Classes in checkpoints of ZeRO 0 to 3 beyond those that torch allows. They only hold numbers."""
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_NAME = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|type) (\S+)")


@contextmanager
def only_known_classes(where: Path | str, *, trust: bool = False) -> Iterator[None]:
    """In the block, make `torch.load` refuse classes outside `KNOWN`, whatever its `weights_only`.

    Args:
        where: the checkpoint, named in the message.
        trust: the flag --trust-checkpoint: load as DeepSpeed does, code included.

    Raises:
        CheckpointError: a file holds more than numbers.
    """
    if trust:
        yield
        return
    # Two variables of torch override the `weights_only` that a caller passes; set only _FORCE.
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_classes()):
            yield
    except pickle.UnpicklingError as error:
        name = refused_name(error)
        if name is None:
            raise CheckpointError(
                f"A file of {where} cannot be loaded.", got=_reason(str(error))
            ) from None
        raise CheckpointError(
            f"A file of {where} holds more than numbers: loading it could run code.",
            got=f"it names {name}",
            fix="use another checkpoint; or, if you know and trust its author, add "
            "--trust-checkpoint",
        ) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def refused_name(error: BaseException) -> str | None:
    """The class or function that made `torch.load` refuse a file; None for any other error."""
    match = _NAME.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return (match[1] or match[2]) if match else None


def _reason(message: str) -> str:
    """The reason in torch's message, without its advice on how to load the file anyway."""
    _, _, reason = message.partition("WeightsUnpickler error:")
    lines = [line.strip() for line in (reason or message).splitlines() if line.strip()]
    return lines[0] if lines else "not a pickle of numbers"


def _classes() -> list[Any]:
    """The classes of `KNOWN` that the installed DeepSpeed has."""
    classes = []
    for path in KNOWN:
        module, _, name = path.rpartition(".")
        try:
            classes.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return classes
