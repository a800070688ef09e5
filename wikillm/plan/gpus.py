"""GPUs that the planner knows: memory, dense peak, and the bandwidths that a rank gets.

Peaks are dense TFLOP/s in bf16 with fp32 accumulation, without sparsity; in fp16 for GPUs before
Ampere. They are from NVIDIA's data sheets, which print the figure with sparsity (twice as high) or
without. For GeForce they are from the appendix of the GA102, Ada and RTX Blackwell white papers,
row "FP16 Tensor with FP32 accumulate".

Memory is the amount that the driver leaves to programs, a little below the nominal size. Bandwidths
are per GPU and direction, at about 80 % of the makers' figures, which is the most that collectives
reach. Inside a node they are those of NVLink or PCIe: NVLink has 900 (H100, H200, H20), 600 (A100),
400 (A800, H800), 300 (V100) or 1800 (B200) GB/s in both directions together; PCIe has 63 (5.0 x16),
31.5 (4.0 x16) or 15.8 (3.0 x16) GB/s in one direction. GeForce has no NVLink (3090: a bridge for
two) and no peer access over PCIe: every byte passes the host's memory, at about half the speed.
Between nodes large GPUs have a network card each (400 or 200 Gbit/s), other nodes have 100 Gbit/s
together. Nothing was measured. A plan notes figures that were not checked against a data sheet.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from wikillm.config.origin import Origin, where_of
from wikillm.config.precision import Precision, resolve_precision
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory in bytes, peak in FLOP/s, bandwidths in bytes/s per GPU and direction."""

    name: str
    driver_name: str
    peak: float
    memory: int
    inside_node: float
    between_nodes: float
    host_link: float  # PCIe, for offload
    memory_bandwidth: float = 0.0  # bytes/s of the GPU's own memory; 0 if it is not known
    has_bf16: bool = True
    # "cpu" is a share of the cores; its peak is measured, in fp32.
    device: Literal["cuda", "cpu"] = "cuda"
    ceiling: float | None = None  # measured FLOP/s of large products, an upper bound for training
    extra_flags: str = ""  # command-line flags that describe the GPU, besides its name
    note: str = ""  # the basis of its figures, shown in the plan

    @property
    def flags(self) -> str:
        """The command-line flags that select this GPU."""
        return f"--gpu {shlex.quote(self.name)}{self.extra_flags}"


# Short name: driver's name; peak in TFLOP/s; memory in GiB; GB/s inside a node, between nodes, to
# the host, and of the GPU's own memory (the data sheet's figure without a deduction).
_GPUS = {
    "b200": ("B200", 2250.0, 178.0, 720.0, 40.0, 50.0, 8000.0),
    "h200": ("H200", 989.5, 139.8, 360.0, 40.0, 50.0, 4800.0),
    "h100": ("H100", 989.5, 79.1, 360.0, 40.0, 50.0, 3350.0),
    "h100-pcie": ("H100 PCIe", 756.0, 79.1, 50.0, 20.0, 50.0, 2000.0),
    # NVLink joins two cards; a node of more goes over PCIe.
    "h100-nvl": ("H100 NVL", 835.5, 93.1, 50.0, 20.0, 50.0, 3900.0),
    "h800": ("H800", 989.5, 79.1, 160.0, 40.0, 50.0, 3350.0),
    "h20": ("H20", 148.0, 95.1, 360.0, 40.0, 50.0, 4000.0),
    "a100": ("A100", 312.0, 79.1, 240.0, 20.0, 25.0, 2039.0),
    "a100-40gb": ("A100", 312.0, 39.4, 240.0, 20.0, 25.0, 1555.0),
    "a100-pcie": ("A100", 312.0, 79.1, 25.0, 20.0, 25.0, 1935.0),
    "a800": ("A800", 312.0, 79.1, 160.0, 20.0, 25.0, 2039.0),
    "l40s": ("L40S", 362.0, 44.4, 25.0, 2.5, 25.0, 864.0),
    "l20": ("L20", 119.5, 44.4, 25.0, 2.5, 25.0, 864.0),
    "a40": ("A40", 149.7, 44.4, 25.0, 2.5, 25.0, 696.0),
    "l4": ("L4", 121.0, 22.0, 12.0, 2.5, 12.0, 300.0),
    "a10": ("A10", 125.0, 22.0, 25.0, 2.5, 25.0, 600.0),
    "a10g": ("A10G", 70.0, 22.0, 25.0, 2.5, 25.0, 600.0),
    # 96 GB GDDR7 with ECC, PCIe 5.0 x16, no NVLink. Peaks: RTX Blackwell PRO white paper (188 SMs
    # at 2617 MHz); Max-Q data sheet, 3511 AI TOPS (FP4, sparse) / 8.
    "rtx-pro6000": ("RTX PRO 6000", 503.8, 94.5, 50.0, 2.5, 50.0, 1792.0),
    "rtx-pro6000-maxq": ("RTX PRO 6000 Blackwell Max-Q", 438.9, 94.5, 50.0, 2.5, 50.0, 1792.0),
    # 48 GB GDDR6, PCIe 4.0 x16, no NVLink. Peak: data sheet, 1457 TFLOPS (FP8, sparse) / 4.
    "rtx6000-ada": ("RTX 6000 Ada", 364.2, 47.3, 25.0, 2.5, 25.0, 960.0),
    # 48 GB GDDR6, PCIe 4.0 x16; NVLink joins two cards. Peak: data sheet, sparse 309.7 TFLOPS / 2.
    "a6000": ("RTX A6000", 154.8, 47.3, 25.0, 2.5, 25.0, 768.0),
    "rtx5090": ("RTX 5090", 209.5, 31.4, 25.0, 2.5, 50.0, 1792.0),
    "rtx4090": ("RTX 4090", 165.2, 23.5, 12.0, 2.5, 25.0, 1008.0),
    "rtx4090d": ("RTX 4090 D", 147.0, 23.5, 12.0, 2.5, 25.0, 1008.0),
    "rtx3090": ("RTX 3090", 71.0, 23.5, 12.0, 2.5, 25.0, 936.0),
    "v100": ("V100", 125.0, 31.7, 120.0, 10.0, 12.0, 900.0),
    "t4": ("T4", 65.0, 14.6, 10.0, 2.5, 12.0, 320.0),
    # 192 GB HBM3, 7 Infinity Fabric links of 64 GB/s each way. Peak: data sheet, without sparsity.
    "mi300x": ("MI300X", 1307.4, 191.0, 358.0, 40.0, 50.0, 5300.0),
    # Atlas 800T A2: 64 GB, HCCS 392 GB/s both ways, 200GE RoCE. Peak: 8 processors have 2.5 PFLOPS.
    "ascend-910b": ("Ascend 910B", 313.0, 61.0, 156.0, 20.0, 25.0, 1600.0),
}
_OTHER_PEAKS = {
    "GB200": 2500.0,
    "GH200": 989.5,
    "H800 PCIe": 756.0,
    "A30": 165.0,
    "L40": 181.0,
    "RTX 3090 Ti": 80.0,
    "V100-PCIE": 112.0,
}
"""Peaks in TFLOP/s of GPUs that `--gpu` does not know, by driver's name, for the MFU of a run."""
_UNCHECKED = "figures not checked against its data sheet"
_NOTES = {
    "mi300x": f"MI300X: {_UNCHECKED}; WikiLLM was not tried with ROCm",
    "ascend-910b": f"Ascend 910B: planned only, WikiLLM does not train on it; {_UNCHECKED}",
    "rtx-pro6000": f"RTX PRO 6000: {_UNCHECKED}",
    "rtx-pro6000-maxq": f"RTX PRO 6000: {_UNCHECKED}",
}
_LISTED = {
    name: Gpu(
        name,
        driver_name,
        tflops * 1e12,
        int(gib * GIB),
        inside * 1e9,
        between * 1e9,
        host * 1e9,
        memory_rate * 1e9,
        has_bf16=name not in ("v100", "t4"),
        note=_NOTES.get(name, ""),
    )
    for name, (driver_name, tflops, gib, inside, between, host, memory_rate) in _GPUS.items()
}
GPU_NAMES = tuple(_LISTED)
_PEAKS = {driver: tflops * 1e12 for driver, tflops in _OTHER_PEAKS.items()}
_PEAKS |= {gpu.driver_name: gpu.peak for gpu in _LISTED.values()}
_MARKETING = re.compile(
    "nvidia|geforce|tesla|quadro|amd|instinct|radeon|huawei|gpu|graphics|card|generation|edition|"
    "workstation|server|blackwell|hopper|ampere|lovelace|sxm[2-6]?|hbm[23]?e?|oam|tensor|core"
)
PLAIN_LINKS = (25.0, 2.5, 25.0)
"""GB/s of links (as in `_GPUS`) of a GPU that is not listed: PCIe 4.0 x16, 100 Gbit/s per node."""
DESCRIBE = "--gpu NAME --gpu-memory 24GiB --tflops 165"


def find_gpu(name: str) -> Gpu:
    """A GPU by its short name, in any spelling, or by its driver's name.

    Raises ConfigError, which suggests the nearest name.
    """
    known = _listed_gpu(name)
    if known is not None:
        return known
    wanted, size = _compact(name)
    short_names = {_compact(short)[0]: short for short in reversed(GPU_NAMES)}
    near = did_you_mean(wanted, short_names)
    fix = DESCRIBE.replace("NAME", shlex.quote(name))
    if near:
        fix = f"--gpu {short_names[near]}" + (f" --gpu-memory {size:g}GiB" if size else "")
    raise ConfigError(
        f"The planner knows no GPU {name!r}.",
        got=f"known: {', '.join(GPU_NAMES)}; cpu\n"
        f"any other: {DESCRIBE}   (its dense bf16 peak, from its data sheet)",
        fix=fix,
    )


def describe_gpu(name: str, memory: int | None, tflops: float) -> Gpu:
    """A GPU described by its usable `memory` in bytes and its dense 16-bit peak, `tflops`.

    A known name keeps its links. Raises ConfigError if the memory is neither given nor known.
    """
    known = _listed_gpu(name)
    if known is None and memory is None:
        raise ConfigError(
            f"The planner knows no GPU {name!r}, and its memory is not given.",
            got=f"--gpu {name} --tflops {tflops:g}",
            fix=f"--gpu {shlex.quote(name)} --tflops {tflops:g} --gpu-memory 24GiB",
        )
    if known is None:
        inside, between, host = (rate * 1e9 for rate in PLAIN_LINKS)
        note = (
            f"{name} is not in the planner's list: PCIe 4.0 x16 without NVLink, "
            "100 Gbit/s per node and bf16 are assumed"
        )
        known = Gpu(name, name, 0.0, 0, inside, between, host, note=note)
    gpu = with_memory(known, memory)
    return replace(gpu, peak=tflops * 1e12, extra_flags=f"{gpu.extra_flags} --tflops {tflops:g}")


def with_memory(gpu: Gpu, memory: int | None) -> Gpu:
    """The GPU with another amount of usable memory in bytes; None leaves the GPU as it is."""
    if memory is None:
        return gpu
    return replace(gpu, memory=memory, extra_flags=f" --gpu-memory {memory / GIB:g}GiB")


def _compact(name: str) -> tuple[str, float | None]:
    """(model, memory in GB) in a name: `NVIDIA A100-SXM4-40GB` is ("a100", 40.0).

    The maker's other words are left out. The memory is None if the name does not contain it.
    """
    text = name.lower().replace("max-q", "maxq")
    size = re.search(r"(?<![a-z0-9])([0-9]+)\s*g(?:i?b)?(?![a-z0-9])", text)
    words = re.split(r"[^a-z0-9]+", text.replace(size[0], " ") if size else text)
    model = "".join(word for word in words if not _MARKETING.fullmatch(word))
    return model, float(size[1]) if size else None


def _listed_gpu(name: str) -> Gpu | None:
    """The listed GPU with this name. A size in the name must match its memory within 10 %."""
    wanted, size = _compact(name)
    for gpu in _LISTED.values():
        known, _ = _compact(gpu.name)
        spellings = {known, known.removeprefix("rtx"), known.removeprefix("ascend"), f"rtx{known}"}
        if wanted in spellings and (size is None or abs(size - gpu.memory / GIB) <= 0.1 * size):
            return gpu
    return None


def peak_flops(driver_name: str) -> float | None:
    """Dense 16-bit peak in FLOP/s of a GPU by its driver's name; None for an unknown GPU."""
    words = f" {driver_name.replace('GeForce ', '')}"
    for name in sorted(_PEAKS, key=len, reverse=True):  # "H100 PCIe" before "H100"
        # Match whole words only: "L4" must not match "GL4", nor "A10" match "A100".
        if re.search(rf"[ -]{re.escape(name)}(?![^\W_])", words):
            return _PEAKS[name]
    return None


def gpu_by_driver_name(name: str) -> Gpu | None:
    """The listed GPU for a driver's name, matched by peak; None for an unknown GPU."""
    same = [gpu for gpu in _LISTED.values() if gpu.peak == peak_flops(name)]
    named = [gpu for gpu in same if gpu.driver_name.lower() in name.lower()]
    return next(iter(named or same), None)


def planned_precision(train: TrainSection, origins: Mapping[str, Origin], gpu: Gpu) -> Precision:
    """The run's precision on this GPU. Raises ConfigError for bf16 on a GPU without it."""
    has_gpu = gpu.device == "cuda"
    precision = resolve_precision(train.precision, has_gpu=has_gpu, has_bf16=gpu.has_bf16)
    if precision == "bf16" and not gpu.has_bf16:
        raise ConfigError(
            f"A {gpu.name} has no bf16.",
            got=where_of(origins, "train.precision"),
            fix="train.precision=fp16",
        )
    return precision
