"""The list of documents dropped as duplicates: `drops.bin`, sorted by source and offset.

Deduplication (`data/dedup/`) writes the list, the build of the store reads it, and its sha256 is
part of the fingerprint. Each entry names the document that is kept instead, so every drop can be
checked. In a separate file (`data.drop_list`), one line of JSON precedes the entries: the settings
and sources that they were made from, their counts and their sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError
from wikillm.core.files import write_atomic
from wikillm.data.types import Dropped

DROP = np.dtype(
    [
        ("source", "<u4"),
        ("offset", "<u8"),
        ("kept_source", "<u4"),
        ("kept_offset", "<u8"),
        ("characters", "<u4"),
        ("text_bytes", "<u4"),
        ("percent", "<u4"),
    ]
)
"""`percent`: estimated similarity to the kept document; `EXACT` when the texts are equal."""
EXACT = 1000
DROP_LIST_NAME = "drops.bin"
EXACT_DUPLICATE = "exact copy"  # do not reword: stored manifests hold it
NEAR_DUPLICATE = "near copy"
_MARK = "wikillm_drop_list"
_VERSION = 1
_COUNTED = ("sha256", "exact", "near")
_MAX_HEADER = 64 << 20  # bytes; a header holds the sha256 of each source


@dataclass(frozen=True, slots=True)
class DropList:
    """A drop-list in a file.

    Attributes:
        sha256: of the entries.
        exact: number of entries for exact duplicates.
        near: number of entries for near duplicates.
        start: offset of the first entry in the file.
    """

    path: Path
    sha256: str
    exact: int
    near: int
    start: int = 0

    def entries(self) -> bytes:
        """The bytes of the entries. Raises DataError when they do not match `sha256`."""
        content = b""
        with suppress(OSError), open(self.path, "rb") as file:
            file.seek(self.start)
            content = file.read()
        if len(content) % DROP.itemsize == 0 and hashlib.sha256(content).hexdigest() == self.sha256:
            return content
        fix = f"remove {self.path.parent} and start again: the drop-list is rebuilt"
        if self.start:
            make = f"wikillm prepare ... --drop-list-only {self.path}"
            fix = f"copy the file again, or rebuild it: {make}"
        what = "A drop-list is missing, cut off, or not the drop-list of this store."
        raise DataError(what, got=str(self.path), fix=fix)

    def between(self, ranges: Mapping[int, tuple[int, int]]) -> dict[tuple[int, int], Dropped]:
        """The dropped documents within a range of offsets per source, by (source, offset)."""
        if not ranges:
            return {}
        entries = _open(self)
        found: dict[tuple[int, int], Dropped] = {}
        for number, (start, end) in ranges.items():
            low, high = np.searchsorted(entries["source"], [number, number + 1])
            part = entries[low:high]
            low, high = np.searchsorted(part["offset"], [start, end])
            found |= {(number, int(entry["offset"])): _dropped(entry) for entry in part[low:high]}
        return found


def _dropped(entry: Any) -> Dropped:
    reason = EXACT_DUPLICATE if entry["percent"] == EXACT else NEAR_DUPLICATE
    detail = f"of source {entry['kept_source']}, byte {entry['kept_offset']}"
    return Dropped(reason, int(entry["characters"]), detail=detail)


@lru_cache(maxsize=1)
def _open(drop_list: DropList) -> npt.NDArray[Any]:
    return np.frombuffer(drop_list.entries(), dtype=DROP)


def write_drop_list(path: Path, drop_list: DropList, made_from: Mapping[str, Any]) -> None:
    """Write a separate file. `made_from`: the settings and sources that determine the drop-list."""
    header = {
        _MARK: _VERSION,
        **{name: getattr(drop_list, name) for name in _COUNTED},
        "made_from": made_from,
    }
    write_atomic(path, json.dumps(header, ensure_ascii=True).encode() + b"\n" + drop_list.entries())


def read_drop_list(path: Path) -> tuple[DropList, dict[str, Any]]:
    """The drop-list in a separate file, and what it was made from.

    Raises DataError for a file that is missing, cut off, changed, or something else.
    """
    how = f"wikillm prepare data.path=... data.dedup=exact --drop-list-only {path}"
    try:
        with open(path, "rb") as file:
            line = file.readline(_MAX_HEADER)
    except OSError as error:
        what = "The file in data.drop_list cannot be read."
        raise DataError(what, got=f"{path}: {error.strerror}", fix=f"make it: {how}") from None
    try:
        header = json.loads(line)
        if header[_MARK] != _VERSION:
            raise ValueError
        counts = {name: header[name] for name in _COUNTED}
        found = DropList(path.absolute(), **counts, start=len(line))
        made_from = dict(header["made_from"])
    except (ValueError, RecursionError, KeyError, TypeError):
        what = "The file in data.drop_list is not a drop-list that this version reads."
        raise DataError(what, got=str(path), fix=f"make a drop-list: {how}") from None
    found.entries()
    return found, made_from
