"""The documents that are left out as copies of others: `drops.bin`, sorted by source and offset.

The first pass writes it (`copies`), the build of the store reads it, and its sha256 is part of the fingerprint. Each
entry names the document that is kept in its place, so that every drop can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError
from wikillm.core.files import sha256_file
from wikillm.data.types import Dropped, Record

DROP = np.dtype(
    [
        *(("source", "<u4"), ("offset", "<u8")),
        *(("kept_source", "<u4"), ("kept_offset", "<u8")),
        *(("characters", "<u4"), ("text_bytes", "<u4"), ("percent", "<u4")),
    ]
)
"""`percent`: estimated similarity to the kept document; `EXACT` when the texts are equal."""
EXACT = 1000
DROP_LIST_NAME = "drops.bin"
EXACT_COPY, NEAR_COPY = "exact copy", "near copy"


@dataclass(frozen=True, slots=True)
class DropList:
    """A written drop-list. `exact` and `near` count its entries."""

    path: Path
    sha256: str
    exact: int
    near: int

    def among(self, records: Iterable[Record]) -> dict[tuple[int, int], Dropped]:
        """What of these records is dropped, by source and offset."""
        places: dict[int, list[int]] = {}
        for record in records:
            places.setdefault(record.source, []).append(record.offset)
        if not places:
            return {}
        entries = _open(self)
        found: dict[tuple[int, int], Dropped] = {}
        for number, offsets in places.items():
            low, high = np.searchsorted(entries["source"], [number, number + 1])
            part = entries[low:high]
            low, high = np.searchsorted(part["offset"], [min(offsets), max(offsets) + 1])
            found |= {(number, int(entry["offset"])): _dropped(entry) for entry in part[low:high]}
        return found


def _dropped(entry: Any) -> Dropped:
    reason = EXACT_COPY if entry["percent"] == EXACT else NEAR_COPY
    detail = f"of source {entry['kept_source']}, byte {entry['kept_offset']}"
    return Dropped(int(entry["source"]), int(entry["offset"]), reason, int(entry["characters"]), detail=detail)


@lru_cache(maxsize=1)
def _open(drop_list: DropList) -> npt.NDArray[Any]:
    if not drop_list.path.is_file() or sha256_file(drop_list.path) != drop_list.sha256:
        raise DataError(
            "A drop-list is missing, or not the one the store is made with.",
            got=str(drop_list.path),
            fix=f"remove {drop_list.path.parent} and start again: it is made anew",
        )
    return np.fromfile(drop_list.path, dtype=DROP)
