"""DeepSpeed starts on a CPU without compiling an op and without buffers in shared memory."""

from __future__ import annotations

from pathlib import Path

from harness.programs import start_and_sum
from harness.ranks import run_ranks


def test_deepspeed_starts_without_a_compiled_op_and_its_collectives_work(tmp_path: Path) -> None:
    found = run_ranks(start_and_sum, 2, str(tmp_path))
    assert found == [(3.0, []), (3.0, [])]
    assert list(tmp_path.iterdir()) == [], "nothing was compiled"
