"""What the ledger says: the samples of the steps, what was left out, and one digest of it all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from wikillm.core.errors import CheckpointError
from wikillm.ledger.record import NAME, History, read_ledger

MOST_WINDOWS = 60


def read_history(run: Path) -> History | str | None:
    """The ledger without superseded lines; the reason if it is damaged; None if there is none."""
    if not (run / NAME).is_file():
        return None
    try:
        return History.of(read_ledger(run / NAME))
    except CheckpointError as error:
        return f"{error.what} {error.got}"


def digest_of(history: History) -> str:
    """Of the digests of all steps in their order: equal for runs that read the same tokens."""
    found = hashlib.sha256()
    for line in history.steps:
        found.update(line.digest.to_bytes(8, "big"))
    return found.hexdigest()[:16]


def ledger_section(run: Path) -> dict[str, Any]:
    """Values of the template's part "Ledger"."""
    history = read_history(run)
    if not isinstance(history, History):
        return {"ledger": [("state", history)] if history else [], "skipped": []}
    rows: list[tuple[str, str]] = []
    if history.steps:
        first = history.steps[0]
        last = history.steps[-1]
        rows.append(("steps", f"{first.step:,} to {last.step:,}"))
        rows.append(("samples", f"{first.first:,} to {last.stop - 1:,}"))
        rows.append(("digest of all steps", digest_of(history)))
    rows.append(("starts", f"{len(history.segments):,}"))
    rows.append(("steps trained again", f"{history.superseded:,}"))
    rows.append(("proof", f"wikillm audit {run}"))
    skipped = [
        (f"{window.first:,}", f"{window.stop - 1:,}", window.reason)
        for window in history.skipped[:MOST_WINDOWS]
    ]
    return {"ledger": rows, "skipped": skipped}
