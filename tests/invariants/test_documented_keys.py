"""docs/guide/metrics.md explains every key that a run writes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from harness.reference import References


@pytest.mark.parametrize("page", ["metrics.md", "metrics.zh.md"])
def test_every_key_of_a_run_is_explained(references: References, repo: Path, page: str) -> None:
    folder = references(1, deepspeed="zero1")["folder"]
    text = (repo / "docs" / "guide" / page).read_text(encoding="utf-8")
    for name in ("metrics.jsonl", "events.jsonl", "ledger.jsonl"):
        lines = [orjson.loads(line) for line in (folder / name).read_bytes().splitlines()]
        written = {key for line in lines for key in line}
        assert len(written) > 5
        assert not sorted(key for key in written if f"`{key}`" not in text), name
