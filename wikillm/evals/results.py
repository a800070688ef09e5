"""Records of evaluations: `RUN/evals/NAME.json`, and the rows that pages and model cards show.

A record contains everything needed to reproduce it: the model's digest and step, the digests of the
files, the settings and the versions. Torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wikillm import __version__
from wikillm.checkpoints.layout import MANIFEST, step_of
from wikillm.core.files import read_regular, sha256_file, write_json

FOLDER = "evals"
MAX_SOURCES = 20
"""Number of files of an evaluation that are shown with their own row; the record has all files."""
_FORMAT_VERSION = 1
TEXT_HEAD = ("step", "text", "bits/byte", "perplexity", "tokens", "bytes", "documents")
TASK_HEAD = (
    *("step", "task", "shots", "questions", "accuracy", "95 % interval"),
    *("by bytes", "chance", "bits/byte", "verdict"),
)


def model_record(folder: Path) -> dict[str, Any]:
    """Name, step and digest of a checkpoint or of a Hugging Face folder.

    The digest of a checkpoint is the sha256 of its manifest, which lists all files. The digest of a
    Hugging Face folder covers config.json and the safetensors files.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        digest = sha256_file(manifest)
    else:
        files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
        lines = (f"{path.name} {sha256_file(path)}\n" for path in files)
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"path": str(folder), "step": step_of(folder), "sha256": digest}


def write_results(path: Path, model: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write a record atomically; `values` has `text`, `tasks` or both. Raises OSError."""
    record = {
        "format_version": _FORMAT_VERSION,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": dict(model),
        "versions": {
            "wikillm": __version__,
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
        **values,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def read_results(run: Path) -> list[dict[str, Any]]:
    """The undamaged records of a run, sorted by step and name; the key `name` is added to each."""
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            record = json.loads(read_regular(path))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("format_version") == _FORMAT_VERSION:
            # A damaged record raises an error while its rows are built, and is left out.
            with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):
                text_rows([record])
                task_rows([record], subjects=True)
                found.append({**record, "name": path.stem})
    return sorted(found, key=lambda record: (_step(record) or 0, record["name"]))


def text_rows(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows under TEXT_HEAD: per record the whole text, then its first sources, then its scripts."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        text = record.get("text")
        if not isinstance(text, dict):
            continue
        sources = list(text.get("by_source", {}).items())
        parts = {"all": text, **dict(sources[:MAX_SOURCES])}
        if more := sources[MAX_SOURCES:]:
            parts[f"{len(more):,} more files"] = _combined_row([part for _, part in more])
        parts |= text.get("by_script", {})
        for name, part in parts.items():
            rows.append(
                (
                    _shown_step(record),
                    Path(name).name,
                    f"{part['bits_per_byte']:.4f}",
                    f"{part['perplexity']:,.2f}",
                    f"{part['tokens']:,}",
                    f"{part['text_bytes']:,}",
                    f"{part['documents']:,}",
                )
            )
    return rows


def _combined_row(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for several files: sums, and losses weighted by bytes and tokens."""
    total = {key: sum(part[key] for part in parts) for key in ("documents", "text_bytes", "tokens")}
    bits = sum(part["bits_per_byte"] * part["text_bytes"] for part in parts)
    nats = bits * math.log(2)
    return {
        **total,
        "bits_per_byte": bits / max(total["text_bytes"], 1),
        "perplexity": math.exp(nats / max(total["tokens"], 1)),
    }


def task_rows(records: list[dict[str, Any]], *, subjects: bool = False) -> list[tuple[str, ...]]:
    """Rows under TASK_HEAD: each task as a whole; with `subjects` also each of its subjects."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        for task in record.get("tasks", []):
            parts = {task["task"]: task["overall"]}
            if subjects and len(task["subjects"]) > 1:
                parts |= {f"  {name}": part for name, part in task["subjects"].items()}
            for name, part in parts.items():
                rows.append((_shown_step(record), *_task_cells(name, task, part)))
    return rows


def _task_cells(name: str, task: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[str, ...]:
    def percent(key: str) -> str:
        return "-" if part.get(key) is None else f"{part[key]:.1%}"

    interval = part.get("interval")
    bits = part.get("bits_per_byte")
    return (
        name,
        str(task["shots"]),
        f"{part['questions']:,}",
        percent("accuracy"),
        f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "-",
        percent("accuracy_by_bytes"),
        percent("chance"),
        "-" if bits is None else f"{bits:.4f}",
        str(part.get("verdict", "")),
    )


def _step(record: Mapping[str, Any]) -> int | None:
    step = record.get("model", {}).get("step")
    return step if isinstance(step, int) else None


def _shown_step(record: Mapping[str, Any]) -> str:
    step = _step(record)
    return "-" if step is None else f"{step:,}"
