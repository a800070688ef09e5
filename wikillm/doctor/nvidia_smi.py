"""GPUs as nvidia-smi reports them. The parsers take text, so that recorded output can be tested.

Queries are small: nvidia-smi refuses a whole query for one name that its version does not know.
Names are those of `nvidia-smi --help-query-gpu`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from wikillm.doctor.facts import GpuCard, GpuFacts
from wikillm.doctor.probe import read, run_tool

_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("name", str),
    "memory.total": ("memory_total", int),
    "memory.used": ("memory_used", int),
    "compute_mode": ("compute_mode", str),
    "compute_cap": ("compute_capability", float),
    "ecc.errors.uncorrected.volatile.total": ("ecc", int),
    "mig.mode.current": ("mig", lambda cell: cell == "Enabled"),
}
QUERIES = (
    ("name", "memory.total", "memory.used", "compute_mode"),
    *((n,) for n in list(_FIELDS)[4:]),
)
NVIDIA = "0x10de"
DISPLAY = "0x03"


def gather_gpus() -> GpuFacts:
    hardware = count_hardware()
    text, error = run_tool("nvidia-smi")
    if error:
        return GpuFacts(hardware, error)
    queries = [f"--query-gpu=index,{','.join(names)}" for names in QUERIES]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(_smi, queries))
    driver, cuda = parse_head(text)
    return GpuFacts(
        hardware=hardware,
        smi="",
        driver=driver,
        driver_cuda=cuda,
        cards=parse_cards(dict(zip(QUERIES, answers, strict=True))),
    )


def count_hardware(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """NVIDIA display controllers on the bus, with or without a driver."""
    found = devices.glob("*") if devices.is_dir() else ()
    return sum(
        1 for d in found if read(d / "vendor") == NVIDIA and read(d / "class").startswith(DISPLAY)
    )


def _smi(query: str) -> str:
    text, error = run_tool("nvidia-smi", query, "--format=csv,noheader,nounits")
    return "" if error else text


def parse_head(text: str) -> tuple[str, str]:
    """(driver, newest CUDA that it can run) from the head of plain `nvidia-smi`."""
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", text)
    return driver[1] if driver else "", cuda[1] if cuda else ""


def parse_cards(texts: dict[tuple[str, ...], str]) -> tuple[GpuCard, ...]:
    """Cards from the answers to `QUERIES`; a refused query is "" and leaves its fields unknown."""
    found: dict[int, dict[str, Any]] = {}
    for names, text in texts.items():
        for row in _rows(text):
            if len(row) == len(names) + 1 and row[0].isdigit():
                card = found.setdefault(int(row[0]), {"name": "?"})
                for name, cell in zip(names, row[1:], strict=True):
                    field, convert = _FIELDS[name]
                    with suppress(ValueError):  # [N/A], [Not Supported] and the like
                        if not cell.startswith("["):
                            card[field] = convert(cell)
    return tuple(GpuCard(index=index, **found[index]) for index in sorted(found))


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if row]
