"""Initial weights as a pure function of (seed, parameter name, shape).

Every parameter is drawn in float32 on the CPU from its own generator, then copied to its
device and dtype. So all ZeRO stages, numbers of ranks and devices start from the same weights, and
no global random state is read or changed. Matrices are normal(0, initializer_range), biases 0,
norms 1, as in Hugging Face's Qwen2; only the last norm may start with another value.

Under ZeRO-3 one parameter at a time is gathered, drawn by rank 0 and broadcast: the peak memory is
that of the largest parameter, not of the model. One core draws about 10^8 weights per second.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

FINAL_NORM = "model.norm.weight"
"""The norm before the output head, in every supported architecture."""


def initialise_weights(model: nn.Module, seed: int, std: float, final_norm: float = 1.0) -> None:
    """Set every parameter of `model` in place; a tied parameter by its first name. (all ranks)

    Raises ValueError for a parameter whose name has no rule.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_partitioned = hasattr(parameter, "ds_id")
            with _whole(parameter) if is_partitioned else nullcontext():
                if not is_partitioned or torch.distributed.get_rank() == 0:
                    values = initial_values(name, parameter.shape, seed, std)
                    parameter.copy_(values * final_norm if name == FINAL_NORM else values)


def initial_values(name: str, shape: torch.Size, seed: int, std: float) -> torch.Tensor:
    """The float32 CPU tensor that a parameter starts with."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1 and name.endswith("norm.weight"):
        return torch.ones(shape)
    if len(shape) != 2:
        raise ValueError(f"no rule for the initial values of {name} with shape {tuple(shape)}")
    return torch.empty(shape).normal_(0.0, std, generator=generator(seed, name))


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator seeded with 32 bits of hash(seed, purpose, name)."""
    digest = hashlib.blake2b(f"{seed}/weights/{name}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _whole(parameter: nn.Parameter) -> AbstractContextManager[object]:
    import deepspeed

    gathered: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(
        [parameter], modifier_rank=0
    )
    return gathered
