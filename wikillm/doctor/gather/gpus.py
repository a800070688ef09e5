"""GPUs as nvidia-smi tells them. The parsers take its text, so that other machines' output can be tested.

Fields are asked for in small queries: nvidia-smi refuses a whole query for one name that its version does not know.
Names are those of `nvidia-smi --help-query-gpu`; clocks_event_reasons was clocks_throttle_reasons before driver 535.
"""

from __future__ import annotations

import csv
import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

from wikillm.doctor.facts import GpuCard, Gpus
from wikillm.doctor.gather.command import ask, read

QUERIES = (
    ("name", "memory.total", "memory.used", "temperature.gpu", "compute_mode", "persistence_mode"),
    ("compute_cap",),
    ("power.limit", "power.default_limit"),
    ("ecc.errors.uncorrected.volatile.total", "ecc.errors.uncorrected.aggregate.total"),
    ("mig.mode.current",),
    ("clocks_event_reasons.active",),
    ("clocks_throttle_reasons.active",),
    ("pcie.link.width.current", "pcie.link.width.max"),
    ("retired_pages.pending",),
)
_FIELDS = {
    "name": "name", "memory.total": "memory_total", "memory.used": "memory_used", "temperature.gpu": "temperature",
    "compute_mode": "compute_mode", "persistence_mode": "persistence", "compute_cap": "compute_capability",
    "power.limit": "power_limit", "power.default_limit": "power_default",
    "ecc.errors.uncorrected.volatile.total": "ecc_now", "ecc.errors.uncorrected.aggregate.total": "ecc_ever",
    "mig.mode.current": "mig", "clocks_event_reasons.active": "throttle", "clocks_throttle_reasons.active": "throttle",
    "pcie.link.width.current": "pcie_width", "pcie.link.width.max": "pcie_width_max",
    "retired_pages.pending": "row_remap",
}  # fmt: skip
_TYPES = {field.name: str(field.type).split(" ")[0] for field in fields(GpuCard)}
NVIDIA, DISPLAY = "0x10de", "0x03"


def gather_gpus() -> Gpus:
    hardware = count_hardware()
    head = ask("nvidia-smi")
    if head.error:
        return Gpus(hardware, head.error)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(_query, QUERIES))
        remap = pool.submit(
            _smi, "--query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure"
        )
        apps = pool.submit(_smi, "--query-compute-apps=pid,process_name,used_gpu_memory")
        topology = pool.submit(ask, "nvidia-smi", "topo", "-m")
    driver, cuda = parse_head(head.text)
    cards = parse_cards(dict(zip(QUERIES, texts, strict=True)))
    return Gpus(
        hardware=hardware,
        smi="",
        driver=driver,
        driver_cuda=cuda,
        cards=with_remapped_rows(cards, remap.result()),
        processes=parse_processes(apps.result()),
        links=parse_topology(topology.result().text),
    )


def count_hardware(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """NVIDIA display controllers on the bus, with or without a driver."""
    found = devices.glob("*") if devices.is_dir() else ()
    return sum(
        1 for d in found if read(d / "vendor") == NVIDIA and read(d / "class").startswith(DISPLAY)
    )


def _query(names: tuple[str, ...]) -> str:
    return _smi(f"--query-gpu=index,{','.join(names)}")


def _smi(query: str) -> str:
    answer = ask("nvidia-smi", query, "--format=csv,noheader,nounits")
    return "" if answer.error else answer.text


def parse_head(text: str) -> tuple[str, str]:
    """(driver, newest CUDA that it can run) from the head of plain `nvidia-smi`."""
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", text)
    return driver[1] if driver else "", cuda[1] if cuda else ""


def parse_cards(texts: dict[tuple[str, ...], str]) -> tuple[GpuCard, ...]:
    """Cards from the answers to `QUERIES`; a query that was refused is "" and leaves its fields unknown."""
    cards: dict[int, GpuCard] = {}
    for names, text in texts.items():
        for row in _rows(text):
            if len(row) != len(names) + 1 or not row[0].isdigit():
                continue
            index = int(row[0])
            card = cards.setdefault(index, GpuCard(index, "?"))
            found = {
                _FIELDS[name]: _value(_FIELDS[name], cell)
                for name, cell in zip(names, row[1:], strict=True)
            }
            cards[index] = replace(card, **{k: v for k, v in found.items() if v is not None})  # type: ignore[arg-type]
    return tuple(cards[index] for index in sorted(cards))


def with_remapped_rows(cards: tuple[GpuCard, ...], text: str) -> tuple[GpuCard, ...]:
    """Rows come in the order of the cards. Failure is worse than pending, which a reset settles."""
    rows = _rows(text)
    if len(rows) != len(cards):
        return cards
    out = []
    for card, row in zip(cards, rows, strict=True):
        states = [_is_yes(cell) for cell in row[1:3]]
        state: str | None
        if states == [False, False]:
            state = card.row_remap or ""  # retired pages are the older way of the same
        else:
            state = (
                "failed"
                if states[1:] == [True]
                else "pending"
                if states[:1] == [True]
                else card.row_remap
            )
        out.append(replace(card, row_remap=state))
    return tuple(out)


def parse_processes(text: str) -> tuple[tuple[int, str, int], ...]:
    found = []
    for row in _rows(text):
        if len(row) == 3 and row[0].isdigit():
            found.append(
                (int(row[0]), row[1].rsplit("/", 1)[-1], int(row[2]) if row[2].isdigit() else 0)
            )
    return tuple(found)


def parse_topology(text: str) -> tuple[tuple[int, int, str], ...]:
    """Every pair of GPUs and how they are joined: NV4, PIX, PXB, PHB, NODE or SYS."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).split() for line in text.splitlines()]
    head = next((words for words in lines if words and words[0] == "GPU0" and "X" not in words), [])
    columns = [int(word[3:]) for word in head if re.fullmatch(r"GPU\d+", word)]
    links = []
    for words in lines:
        if (
            words
            and words is not head
            and re.fullmatch(r"GPU\d+", words[0])
            and len(words) > len(columns)
        ):
            row = int(words[0][3:])
            links += [
                (row, c, kind) for c, kind in zip(columns, words[1:], strict=False) if row < c
            ]
    return tuple(links)


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if row]


def _is_yes(cell: str) -> bool | None:
    if re.fullmatch(r"\d+", cell):
        return int(cell) > 0
    return {"yes": True, "enabled": True, "no": False, "disabled": False}.get(cell.lower())


def _value(field: str, cell: str) -> object:
    """A cell in the type of its field; None for [N/A], [Not Supported] and whatever else is no value."""
    if cell.startswith("[") or cell in ("", "N/A"):
        return None
    kind = _TYPES[field]
    try:
        if field == "row_remap":
            return "pending" if _is_yes(cell) else ""
        if kind == "bool":
            return _is_yes(cell)
        if kind == "int":
            return int(cell, 16) if cell.startswith("0x") else int(float(cell))
        return float(cell) if kind == "float" else cell
    except ValueError:
        return None
