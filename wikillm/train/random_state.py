"""Saves and restores this rank's random generators (Python, NumPy, torch, the GPU) as JSON."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The state of every generator of this process that training can draw from."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [str(numpy[0]), numpy[1].tolist(), *numpy[2:]],
        "torch": _text(torch.random.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _text(torch.cuda.random.get_rng_state())
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to a `random_state`. Without a GPU, the GPU's state is ignored."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.random.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(_tensor(state["cuda"]))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
