"""Checks with nvidia-smi whether the GPUs work, are free, and are as many as the run needs.

`nvidia-smi --help-query-gpu` lists the names in the query. All drivers for CUDA 12 have them.
"""

from __future__ import annotations

import csv
import io
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from wikillm.core.files import read_small
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import run_tool

BF16_CAPABILITY = 8.0
TAKEN_SHARE = 0.1
DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
_QUERY = (
    "index", "name", "memory.total", "memory.used", "compute_mode", "compute_cap",
    "ecc.errors.uncorrected.volatile.total", "mig.mode.current",
)  # fmt: skip


class GpuCard(NamedTuple):
    """The cells of `_QUERY` as nvidia-smi prints them: memory in MiB, or [N/A]."""

    number: str
    name: str
    memory_total: str
    memory_used: str
    compute_mode: str
    compute_capability: str
    ecc: str  # uncorrected errors since the driver was loaded
    mig: str


@dataclass(frozen=True, slots=True)
class Gpus:
    """`error`: "" if nvidia-smi works. `driver_cuda`: the newest CUDA version of the driver."""

    error: str
    driver: str = ""
    driver_cuda: str = ""
    cards: tuple[GpuCard, ...] = ()


@cache
def read_gpus() -> Gpus:
    """The GPUs of this machine. nvidia-smi runs once, since it takes seconds on some machines."""
    text, error = run_tool("nvidia-smi")
    rows = ""
    if not error:
        query = f"--query-gpu={','.join(_QUERY)}"
        rows, error = run_tool("nvidia-smi", query, "--format=csv,noheader,nounits")
    if error:
        return Gpus(error)
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", text)
    table = csv.reader(io.StringIO(rows), skipinitialspace=True)
    # Lines of another form are warnings of nvidia-smi.
    cells = [row for row in table if len(row) == len(_QUERY) and row[0].isdigit()]
    return Gpus(
        error="",
        driver=driver[1] if driver else "",
        driver_cuda=cuda[1] if cuda else "",
        cards=tuple(GpuCard(*row) for row in cells),
    )


def count_gpus() -> int:
    return len(read_gpus().cards)


def gpu_kinds() -> str:
    return ", ".join(sorted({card.name for card in read_gpus().cards})) or "no GPU"


def _number(cell: str) -> float | None:
    with suppress(ValueError):
        return float(cell)
    return None


def _is_taken(card: GpuCard) -> bool:
    used = _number(card.memory_used)
    total = _number(card.memory_total)
    return used is not None and total is not None and used > TAKEN_SHARE * total


def _devices_on_the_bus() -> int:
    """NVIDIA display controllers, with or without a driver."""
    vendors = {device: read_small(device / "vendor") for device in DEVICES.glob("*")}
    nvidia = [device for device, vendor in vendors.items() if vendor == _NVIDIA]
    return sum(read_small(device / "class").startswith(_DISPLAY) for device in nvidia)


@check("gpu")
def gpu_driver(needs: Needs) -> Finding:
    """nvidia-smi works if there is NVIDIA hardware."""
    gpus = read_gpus()
    if not gpus.error:
        return ok(f"driver {gpus.driver}, {len(gpus.cards)} GPUs")
    if devices := _devices_on_the_bus():
        return fail(
            f"{devices} NVIDIA devices on the bus; nvidia-smi: {gpus.error}",
            "the driver is missing or does not run",
            "install or reload the driver; in a container: start it with --gpus all",
        )
    return skip("no NVIDIA GPU: runs train on the CPU")


@check("gpu")
def gpu_count(needs: Needs) -> Finding:
    """There is a GPU for each process, and CUDA_VISIBLE_DEVICES does not hide it."""
    count = count_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count:
        return skip("no GPU")
    found = f"{count} GPUs, {needs.slots} processes"
    if count < needs.slots:
        return fail(found, "NCCL needs a GPU for each process", f"slots={count} in the hostfile")
    if visible is not None:
        words = [word for word in visible.split(",") if word.strip() and word.strip() != "-1"]
        found += f", CUDA_VISIBLE_DEVICES={visible}"
        if len(words) < needs.slots:
            return fail(found, "some processes have no GPU", "unset CUDA_VISIBLE_DEVICES")
    elif count > needs.slots:
        return warn(found, "the other GPUs stay idle", f"slots={count} in the hostfile, or --gpus")
    return ok(found)


@check("gpu")
def gpu_free(needs: Needs) -> Finding:
    """No other process uses the GPUs' memory."""
    taken = [
        f"GPU {card.number}: {card.memory_used} of {card.memory_total} MiB in use"
        for card in read_gpus().cards
        if _is_taken(card)
    ]
    if taken:
        why = "the run gets less memory and time"
        return warn(", ".join(taken), why, "wait for that process, or ask its owner")
    return ok("free") if count_gpus() else skip("no GPU")


@check("gpu")
def gpu_ecc(needs: Needs) -> Finding:
    """The GPUs report no uncorrected memory errors."""
    counts = {card.number: _number(card.ecc) for card in read_gpus().cards}
    if all(count is None for count in counts.values()):
        return skip("these GPUs count no ECC errors, or ECC is off" if counts else "no GPU")
    bad = [f"GPU {number}: {count:.0f}" for number, count in counts.items() if count]
    if bad:
        found = f"uncorrected since the last reset: {', '.join(bad)}"
        return fail(found, "results can be wrong", "have the GPU reset or replaced")
    return ok("none")


@check("gpu")
def gpu_mode(needs: Needs) -> Finding:
    """No GPU is divided into MIG slices, and the compute mode allows processes."""
    cards = read_gpus().cards
    cut = [card.number for card in cards if card.mig == "Enabled"]
    if cut:
        found = f"MIG is on for GPU {', '.join(cut)}"
        if needs.ranks > 1:
            return fail(found, "NCCL does not work between slices", "sudo nvidia-smi -mig 0")
        fix = "sudo nvidia-smi -mig 0 for the whole GPU"
        return warn(found, "the run gets one slice", fix)
    if any(card.compute_mode == "Prohibited" for card in cards):
        why = "no process may compute on it"
        return fail("compute mode Prohibited", why, "sudo nvidia-smi -c 0")
    return ok("no slices") if cards else skip("no GPU")


@check("gpu")
def gpu_bf16(needs: Needs) -> Finding:
    """The GPUs have bf16 if the run asks for it."""
    cells = [_number(card.compute_capability) for card in read_gpus().cards]
    known = [capability for capability in cells if capability is not None]
    if not known:
        return skip("this driver does not report the compute capability" if cells else "no GPU")
    least = min(known)
    if least >= BF16_CAPABILITY:
        return ok(f"compute capability {least}")
    if needs.precision == "bf16":
        why = f"bf16 needs {BF16_CAPABILITY}"
        return fail(f"compute capability {least}", why, "train.precision=fp16")
    why = "the run trains in fp16, which needs loss scaling"
    return warn(f"compute capability {least}: no bf16", why, "train.precision=fp16")
