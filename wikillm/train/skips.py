"""RUN/skips.json: the windows of samples that a run leaves out, in the order of the decisions.

Written by rank 0 before the run goes back; read by rank 0 at every start and sent to all ranks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from wikillm.core.errors import CheckpointError
from wikillm.core.files import write_json
from wikillm.data.read.step_samples import SkipWindow

NAME = "skips.json"


def read_skips(run: Path) -> tuple[SkipWindow, ...]:
    """The windows of a run, () where there are none. Raises CheckpointError if damaged."""
    path = run / NAME
    if not path.exists():
        return ()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["skips"]
        return tuple(SkipWindow(int(w["first"]), int(w["stop"]), str(w["reason"])) for w in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not say which samples the run skips.",
            got=repr(error),
            fix="restore it; without it the run would train on samples that it has skipped",
        ) from None


def write_skips(run: Path, skips: Sequence[SkipWindow]) -> None:
    """Replace the file, durably. Raises OSError."""
    write_json(run / NAME, {"skips": [asdict(skip) for skip in skips]})
