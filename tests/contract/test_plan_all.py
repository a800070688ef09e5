"""`wikillm plan --all`: every model preset on 1, 8, 64 and 512 GPUs is planned or refused with a
fix, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

from wikillm.config.presets import preset_names

PROBE = """
import sys
from wikillm.cli.main import main
code = main(["plan", "--all", "--json"])
heavy = {"torch", "transformers", "deepspeed", "accelerate", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def test_every_preset_on_every_size() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["plans"]
    assert {(row["model"], row["gpus"]) for row in rows} == {
        (name, size) for name in preset_names("models") for size in (1, 8, 64, 512)
    }
    for row in rows:
        if row["refused"] is not None:
            assert row["refused"]["fix"], row
            continue
        best, memory = row["plan"]["choices"][0], row["plan"]["choices"][0]["memory_bytes"]
        assert best["fits"] and memory["total"] <= row["plan"]["gpu_memory_bytes"]
        assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    planned = {(row["model"], row["gpus"]) for row in rows if row["refused"] is None}
    assert {("120m", 1), ("7b", 8), ("32b", 8), ("72b", 64), ("72b", 512)} <= planned
    assert ("72b", 1) not in planned
