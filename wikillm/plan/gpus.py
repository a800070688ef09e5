"""GPUs that can be planned for: memory, dense peak, and the bandwidths a rank gets.

Memory is what the driver leaves to programs, a little below the number on the box. Peaks are in `flops`. Bandwidths
are per GPU and direction, at about 80 % of the makers' figures, since collectives reach that at best: NVLink or PCIe
inside a node, one network card per GPU (400 or 200 Gbit/s) between nodes of the large ones, 100 Gbit/s per node else.
All of it is from data sheets; nothing was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from wikillm.core.errors import ConfigError, did_you_mean
from wikillm.plan.flops import peak_flops

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """`name` is the driver's; memory in bytes, peak in FLOP/s, bandwidths in bytes/s per GPU and direction."""

    name: str
    memory: int
    peak: float
    inside_node: float
    between_nodes: float
    host_link: float  # PCIe, for offload
    has_bf16: bool
    device: Literal["cuda", "cpu"] = "cuda"  # "cpu": a share of the cores, whose peak is of fp32 and measured
    ceiling: float | None = None  # FLOP/s of large products, measured; what training reaches stays below


# name: driver's name, memory GiB, GB/s inside a node, GB/s between nodes, GB/s to the host
_GPUS = {
    "b200": ("B200", 178.0, 720.0, 40.0, 50.0),
    "h200": ("H200", 139.8, 360.0, 40.0, 50.0),
    "h100": ("H100", 79.1, 360.0, 40.0, 50.0),
    "h100-pcie": ("H100 PCIe", 79.1, 50.0, 20.0, 50.0),
    "h800": ("H800", 79.1, 160.0, 40.0, 50.0),
    "h20": ("H20", 95.1, 360.0, 40.0, 50.0),
    "a100": ("A100", 79.1, 240.0, 20.0, 25.0),
    "a100-40gb": ("A100", 39.4, 240.0, 20.0, 25.0),
    "a800": ("A800", 79.1, 160.0, 20.0, 25.0),
    "l40s": ("L40S", 44.4, 25.0, 2.5, 25.0),
    "l20": ("L20", 44.4, 25.0, 2.5, 25.0),
    "a40": ("A40", 44.4, 25.0, 2.5, 25.0),
    "l4": ("L4", 22.0, 12.0, 2.5, 12.0),
    "a10": ("A10", 22.0, 25.0, 2.5, 25.0),
    "rtx5090": ("RTX 5090", 31.4, 25.0, 2.5, 50.0),
    "rtx4090": ("RTX 4090", 23.5, 12.0, 2.5, 25.0),
    "rtx3090": ("RTX 3090", 23.5, 12.0, 2.5, 25.0),
    "v100": ("V100", 31.7, 120.0, 10.0, 12.0),
    "t4": ("T4", 14.6, 10.0, 2.5, 12.0),
}
_NO_BF16 = ("v100", "t4")
GPU_NAMES = tuple(_GPUS)


def find_gpu(name: str) -> Gpu:
    """A GPU by its short name, in any spelling of case and separators. Raises ConfigError with the nearest name."""
    wanted = name.lower().replace(" ", "").replace("_", "-").removeprefix("nvidia").lstrip("-")
    if wanted not in _GPUS:
        near = did_you_mean(wanted, GPU_NAMES)
        raise ConfigError(
            f"The planner knows no GPU {name!r}.", got="known: " + ", ".join(GPU_NAMES), fix=f"--gpu {near or 'h100'}"
        )
    model, memory, inside, between, host = _GPUS[wanted]
    peak = peak_flops(model)
    assert peak is not None, f"{model} has no peak in flops.py"
    return Gpu(wanted, int(memory * GIB), peak, inside * 1e9, between * 1e9, host * 1e9, wanted not in _NO_BF16)


def driver_name(name: str) -> str:
    """How the driver calls a GPU of `find_gpu`."""
    return _GPUS[name][0]


def gpu_by_driver_name(name: str) -> Gpu | None:
    """The GPU of the list with the same peak as what the driver calls `name`; None when there is none."""
    peak = peak_flops(name)
    same = [short for short in _GPUS if peak is not None and peak_flops(driver_name(short)) == peak]
    named = [short for short in same if driver_name(short).lower() in name.lower()]
    return find_gpu((named or same)[0]) if same else None


def with_memory(gpu: Gpu, memory: int | None) -> Gpu:
    """The same GPU with another amount of usable memory in bytes."""
    return gpu if memory is None else replace(gpu, memory=memory)
