"""A builder that is killed at any point, twice, ends in the same bytes.

`WIKILLM_KILL_POINTS=200 pytest tests/unit/data/prepare/test_kill_points.py` tries that many points,
every fourth with two workers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
from harness import kill_points

from wikillm.data.store.store import INDEX
from wikillm.data.store.writer import SplitWriter


def test_a_builder_killed_anywhere_ends_in_the_same_bytes(tmp_path, source, settings):
    path = source(40)
    count = int(os.environ.get("WIKILLM_KILL_POINTS", "8"))
    cfg = settings(path, tokenizer="train:300", shard_bytes=4000)
    names = {"path", "tokenizer", "min_val_tokens", "shard_bytes", "workers"}
    values = cfg.model_dump(mode="json", include=names)
    words = {"folder": str(tmp_path / "stores"), "settings": values, "points": count}
    done = subprocess.run(
        [sys.executable, kill_points.__file__, json.dumps(words)],
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["points"]) == count
    assert found["events"]["1"] > 100
    for point in found["points"]:
        first, second, last = point["codes"]
        # With two workers the parent's events vary a little: the last point may be beyond them.
        assert first == -signal.SIGKILL or (first == 0 and point["workers"] == 2), point
        assert second in (-signal.SIGKILL, 0), point  # the rest may end before its point
        assert last == 0, (point, done.stderr)
        assert point["same"], point
    assert sum(point["codes"][1] != 0 for point in found["points"]) >= count // 4
    killed = sum(code != 0 for point in found["points"] for code in point["codes"])
    points = f"{count} points of {found['events']} (by workers)"
    print(f"{points}, {killed} kills, all with sha256 {found['sha256']}")


def test_an_abandoned_writer_removes_its_file(tmp_path):
    ids = np.arange(5, dtype=np.uint32)
    rows = np.array([(5, 7, 3, 0, 9)], dtype=INDEX)
    abandoned = SplitWriter(tmp_path, "train", 0)
    abandoned.add(ids, rows)
    assert len(list((tmp_path / "train").iterdir())) == 1
    del abandoned
    assert not list((tmp_path / "train").iterdir())
    kept = SplitWriter(tmp_path, "train", 0)
    kept.add(ids, rows)
    assert kept.finish().tokens == 5
    del kept
    files = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert files == ["00000.idx", "00000.tok"]
