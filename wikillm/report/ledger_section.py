"""The page's section on the ledger: samples of the steps, samples left out, a digest of all
steps."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

from wikillm.core.errors import CheckpointError
from wikillm.ledger.record import NAME, History, read_ledger

MAX_WINDOWS = 60


def read_history(run: Path) -> History | str | None:
    """The ledger without superseded lines. If it is damaged, the reason as text; None if the run
    has no ledger."""
    if not (run / NAME).is_file():
        return None
    try:
        return History.of(read_ledger(run / NAME))
    except CheckpointError as error:
        return f"{error.what} {error.got}"


def digest_of(history: History) -> str:
    """A digest of the digests of all steps, in order. Runs that read equal tokens have equal
    digests."""
    found = hashlib.sha256()
    for line in history.steps:
        found.update(line.digest.to_bytes(8, "big"))
    return found.hexdigest()[:16]


def ledger_section(run: Path) -> dict[str, Any]:
    """Values for the template's section "Ledger"."""
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
    rows.append(("proof", f"wikillm audit {shlex.quote(str(run))}"))
    skipped = [
        (f"{window.first:,}", f"{window.stop - 1:,}", window.reason)
        for window in history.skipped[:MAX_WINDOWS]
    ]
    return {"ledger": rows, "skipped": skipped}
