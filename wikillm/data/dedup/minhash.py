"""First pass over the sources: what is needed of each kept document to tell copies, in files beside the store.

Runs in the worker pool like the build, cut into the same shards. Per document 28 bytes, and with MinHash
another 512: 128 minima of 32 bits over the runs of five units (hanzi, words). The minima come from rensa (MIT, wheels
for x86_64 and aarch64, no dependencies): on 2.5 MB of Chinese Wikipedia it took a ninth of datasketch 2.0's CPU time, and
with 112 minima on 800 pairs of known similarity its estimates had no bias (0.0005) and a deviation of 0.033. A shard's record is written last; a killed pass goes on at the first missing one.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_atomic, write_json
from wikillm.data.filters.characters import grams_of, units_of
from wikillm.data.filters.documents import CleanJob
from wikillm.data.funnel import Funnel, Tally
from wikillm.data.prepare.shard import content_hash
from wikillm.data.sources.read import Cursor, RawShard
from wikillm.data.workers.progress import Report, Work

SIGNED = np.dtype(
    [
        ("source", "<u4"),
        ("offset", "<u8"),
        ("hash", "<u8"),
        ("characters", "<u4"),
        ("text_bytes", "<u4"),
    ]
)
MINIMA, SHINGLE_UNITS, SEED = 128, 5, 1


def signature_facts() -> dict[str, Any]:
    """What decides a signature. Raises ConfigError when the library is missing."""
    return {
        "minima": MINIMA,
        "units": SHINGLE_UNITS,
        "seed": SEED,
        "rensa": _rensa().ALGORITHM_VERSION,
    }


def _rensa() -> Any:
    try:
        from rensa import RMinHash
    except ImportError:
        raise ConfigError(
            "data.dedup=minhash needs rensa, which is not installed.",
            got="no module rensa",
            fix="pip install 'wikillm[wiki]', or data.dedup=exact",
        ) from None
    return RMinHash


@dataclass(frozen=True, slots=True)
class SignedShard:
    """What became of the records between two cursors; `documents` were signed."""

    number: int
    start: Cursor
    end: Cursor
    documents: int
    text_bytes: int
    funnel: Funnel


@dataclass(frozen=True, slots=True)
class SignJob:
    """Sign the documents of a shard."""

    folder: Path
    clean: CleanJob
    with_minima: bool

    def __call__(self, raw: RawShard, report: Report) -> SignedShard:
        tally = Tally()
        rows: list[tuple[int, int, int, int, int]] = []
        minima: list[npt.NDArray[np.uint32]] = []
        for batch in self.clean.batches(raw):
            tally.count(batch)
            for offset, text in zip(batch.offsets, batch.texts, strict=True):
                digest = content_hash(text)
                rows.append((batch.source, offset, digest, len(text), len(text.encode())))
                if self.with_minima:
                    minima.append(minima_of(text, digest))
            report(Work(batch.source_bytes, len(batch.texts)))
        write_atomic(
            signed_path(self.folder, raw.number, "doc"), np.array(rows, dtype=SIGNED).tobytes()
        )
        if self.with_minima:
            write_atomic(
                signed_path(self.folder, raw.number, "min"),
                b"".join(one.tobytes() for one in minima),
            )
        text_bytes = sum(row[4] for row in rows)
        info = SignedShard(raw.number, raw.start, raw.end, len(rows), text_bytes, tally.funnel())
        write_json(signed_path(self.folder, raw.number, "json"), asdict(info))
        return info


def minima_of(text: str, digest: int) -> npt.NDArray[np.uint32]:
    """The signature of a text: the expected share of equal minima is the Jaccard similarity of the sets of runs.

    A text without any unit is similar only to its exact copies: its hash, `digest`, stands for its runs.
    """
    grams = grams_of(units_of(text), SHINGLE_UNITS)
    if not len(grams):
        grams = np.array([digest], dtype=np.uint64)
    matrix = _rensa().digest_matrix_from_flat_token_hashes(grams, [0, len(grams)], MINIMA, SEED)
    return np.array(matrix.to_rows()[0], dtype="<u4")


def signed_path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:05d}.{kind}"


def read_signed(folder: Path, with_minima: bool) -> dict[int, SignedShard]:
    """The shards that an earlier pass has finished."""
    found: dict[int, SignedShard] = {}
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = json.loads(path.read_text(encoding="utf-8"))
            start, end, funnel = (
                Cursor(**value["start"]),
                Cursor(**value["end"]),
                Funnel.from_json(value["funnel"]),
            )
            info = SignedShard(**{**value, "start": start, "end": end, "funnel": funnel})
            sizes = {"doc": info.documents * SIGNED.itemsize}
            if with_minima:
                sizes["min"] = info.documents * MINIMA * 4
            if all(
                signed_path(folder, info.number, kind).stat().st_size == size
                for kind, size in sizes.items()
            ):
                found[info.number] = info
    return found
