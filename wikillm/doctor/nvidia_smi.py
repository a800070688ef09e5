"""GPUs as nvidia-smi reports them. The parsers take text, so that recorded output can be tested.

Names are those of `nvidia-smi --help-query-gpu`; drivers for CUDA 12 know them all.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from wikillm.doctor.facts import GpuCard, GpuFacts
from wikillm.doctor.probe import read, run_tool

_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "index": ("index", int),
    "name": ("name", str),
    "memory.total": ("memory_total", int),
    "memory.used": ("memory_used", int),
    "compute_mode": ("compute_mode", str),
    "compute_cap": ("compute_capability", float),
    "ecc.errors.uncorrected.volatile.total": ("ecc", int),
    "mig.mode.current": ("mig", lambda cell: cell == "Enabled"),
}
NVIDIA = "0x10de"
DISPLAY = "0x03"


def gather_gpus() -> GpuFacts:
    hardware = count_hardware()
    text, error = run_tool("nvidia-smi")
    if not error:
        query = f"--query-gpu={','.join(_FIELDS)}"
        rows, error = run_tool("nvidia-smi", query, "--format=csv,noheader,nounits")
    if error:
        return GpuFacts(hardware, error)
    driver, cuda = parse_head(text)
    return GpuFacts(hardware, "", driver, cuda, parse_cards(rows))


def count_hardware(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """NVIDIA display controllers on the bus, with or without a driver."""
    found = devices.glob("*") if devices.is_dir() else ()
    return sum(
        1 for d in found if read(d / "vendor") == NVIDIA and read(d / "class").startswith(DISPLAY)
    )


def parse_head(text: str) -> tuple[str, str]:
    """(driver, newest CUDA that it can run) from the head of plain `nvidia-smi`."""
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", text)
    return driver[1] if driver else "", cuda[1] if cuda else ""


def parse_cards(text: str) -> tuple[GpuCard, ...]:
    """Cards from the answer to a query of `_FIELDS`; [N/A] and the like leave a number unknown."""
    cards = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(_FIELDS) or not row[0].isdigit():
            continue  # a warning
        card: dict[str, Any] = {}
        for cell, (field, convert) in zip(row, _FIELDS.values(), strict=True):
            with suppress(ValueError):
                card[field] = convert(cell)
        cards.append(GpuCard(**card))
    return tuple(cards)
