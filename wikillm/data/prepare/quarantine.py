"""Keep the bad records of each shard, and list them in errors and in `quarantine.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from wikillm.core.files import write_atomic
from wikillm.data.sources.decompress import file_and_line
from wikillm.data.sources.read import LINES
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.writer import shard_record_path
from wikillm.data.types import DroppedItem, SourceFile

QUARANTINE_NAME = "quarantine.jsonl"
MAX_PER_SHARD = 1000  # bad records kept per shard; the counts include all bad records
HEAD_BYTES = 200
_EXAMPLES = 5


def quarantined(source: int, item: DroppedItem, is_row: bool) -> dict[str, object]:
    """A bad record as JSON. `is_row`: whether it is a row, whose payload ends with the header."""
    record = item.payload.rpartition(b"\n")[0] if is_row else item.payload
    return {
        "source": source,
        "offset": item.offset,
        "reason": item.why.reason,
        "detail": item.why.detail,
        "head": record[:HEAD_BYTES].decode("utf-8", errors="backslashreplace"),
    }


def write_quarantine(store: Path, shards: Sequence[ShardInfo]) -> None:
    """Write `quarantine.jsonl`, one line per bad record."""
    lines = (json.dumps(bad, ensure_ascii=False) + "\n" for bad in _bad_records(store, shards))
    write_atomic(store / QUARANTINE_NAME, "".join(lines))


def bad_examples(
    store: Path, sources: Sequence[SourceFile], shards: Sequence[ShardInfo]
) -> list[str]:
    """The first bad records as lines for an error: place, reason and first characters."""
    found = []
    for bad in islice(_bad_records(store, shards), _EXAMPLES):
        source = sources[bad["source"]]
        where = f"{source.path}: byte {bad['offset']}"
        if source.format in (*LINES, "csv", "blocks"):
            where = file_and_line(source, bad["offset"])
        detail = f": {bad['detail']}" if bad["detail"] else ""
        found.append(f"{where}: {bad['reason']}{detail}: {bad['head'][:60]!r}")
    return found


def _bad_records(store: Path, shards: Sequence[ShardInfo]) -> Iterator[dict[str, Any]]:
    for info in shards:
        record = json.loads(shard_record_path(store, info.number).read_text(encoding="utf-8"))
        yield from record["bad"]
