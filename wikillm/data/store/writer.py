"""Write the files of a shard of a token store."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from wikillm.core.files import STAGING_SUFFIX, rename_durably
from wikillm.data.store.manifest import ShardSplit
from wikillm.data.store.store import INDEX, TOKEN, shard_path


def shard_record_path(store: Path, number: int) -> Path:
    """The path of a shard's record, which is written after its files."""
    return store / "shards" / f"{number:05d}.json"


class SplitWriter:
    """Writes NNNNN.tok as documents are added, and NNNNN.idx at the end.

    A file gets its name when it is complete. A writer that is deleted before `finish`, as in a
    worker whose parent died, removes its file.
    """

    def __init__(self, store: Path, split: str, number: int) -> None:
        self._paths = {kind: shard_path(store, split, number, kind) for kind in ("tok", "idx")}
        self._paths["tok"].parent.mkdir(parents=True, exist_ok=True)
        staged = _staged(self._paths["tok"])
        self._file: BinaryIO = open(staged, "wb")  # noqa: SIM115  closed in finish
        self._cleanup = weakref.finalize(self, staged.unlink, missing_ok=True)
        self._cleanup.atexit = False  # a forked child that exits does not own the file
        self._digest = hashlib.sha256()
        self._tokens = 0
        self._text_bytes = 0
        self._rows: list[npt.NDArray[Any]] = []

    def add(self, ids: npt.NDArray[np.uint32], rows: npt.NDArray[Any]) -> None:
        """Add documents: their ids, concatenated, and one `INDEX` entry per document.

        Pass the document's number of tokens as `end`; this method replaces it by the end position.
        """
        content = ids.astype(TOKEN, copy=False).data
        self._file.write(content)
        self._digest.update(content)
        rows["end"] = np.cumsum(rows["end"]) + np.uint64(self._tokens)
        self._tokens += len(ids)
        self._text_bytes += int(rows["text_bytes"].sum(dtype=np.int64))
        self._rows.append(rows)

    def finish(self) -> ShardSplit:
        """Complete both files, and return their sizes and digests."""
        _close_durably(self._file)
        rename_durably(_staged(self._paths["tok"]), self._paths["tok"])
        self._cleanup.detach()
        index = np.concatenate([np.empty(0, dtype=INDEX), *self._rows]).tobytes()
        with open(_staged(self._paths["idx"]), "wb") as file:
            file.write(index)
            _close_durably(file)
        rename_durably(_staged(self._paths["idx"]), self._paths["idx"])
        return ShardSplit(
            tokens=self._tokens,
            documents=len(index) // INDEX.itemsize,
            text_bytes=self._text_bytes,
            tok_sha256=self._digest.hexdigest(),
            idx_sha256=hashlib.sha256(index).hexdigest(),
        )


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{STAGING_SUFFIX}")


def _close_durably(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
