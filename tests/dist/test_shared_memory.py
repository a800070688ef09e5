"""DeepSpeed's CPU op leaves no shared memory behind. Too little of it is an error, not a SIGBUS."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.programs import start_and_sum
from harness.ranks import run_ranks

from wikillm.core.errors import MachineError
from wikillm.train import cpu_ops


def buffers() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("deepspeed_allreduce_buffer_*")}


def test_a_started_engine_leaves_nothing_and_its_collectives_work() -> None:
    before = buffers()
    assert run_ranks(start_and_sum, 2) == [3.0, 3.0]
    assert buffers() <= before


def test_too_little_shared_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_ops, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(cpu_ops, "BUFFER_BYTES", 10**15)
    with pytest.raises(MachineError, match="too small for 2 processes"):
        cpu_ops.check_shared_memory(2)
