"""Runs whose ranks consume other batches than they should, and the audit of a run's files."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from harness.programs import inject, train


def assert_proven(run: Path, last_step: int, *, superseded: int = 0, segments: int = 1) -> None:
    """The audit proves all steps of the run, and its ledger has this history."""
    from wikillm.ledger.audit import audit_run

    found = audit_run(run)
    assert found.is_proven, found.wrong
    assert (found.first, found.last_step) == (0, last_step) and found.tokens_compared
    assert (found.segments, found.superseded) == (segments, superseded)


def train_on_wrong_batches(words: list[str], fault: str, step: int) -> dict[str, Any]:
    """Run `train`. At optimizer step `step` (from 1) a fault changes what the ranks consume.

    `repeat`: the batch before again. `lose`: the batch after. `other_world`: from step 1 on every
    rank reads as if it were alone.
    """
    from wikillm.train.trainer import WikiTrainer

    get_batch_samples = WikiTrainer.get_batch_samples
    get_train_dataloader = WikiTrainer.get_train_dataloader
    before: list[Any] = []

    def wrong(self: WikiTrainer, batches: Any, count: int, device: Any) -> Any:
        is_due = self.state.global_step == step - 1
        if is_due and fault == "lose":
            list(islice(batches, self.data.shape.accumulation))
        found = get_batch_samples(self, batches, count, device)
        if is_due and fault == "repeat":
            found = before[-1]
        before.append(found)
        return found

    def alone(self: WikiTrainer) -> Any:
        data = self.data
        size = data.shape.world_size
        shape = replace(data.shape, accumulation=data.shape.accumulation * size, world_size=1)
        self.data = replace(data, shape=replace(shape, rank=0))
        try:
            return get_train_dataloader(self)
        finally:
            self.data = data

    WikiTrainer.get_batch_samples = wrong  # type: ignore[method-assign]
    if fault == "other_world":
        WikiTrainer.get_train_dataloader = alone  # type: ignore[method-assign]
    return train(words)


def replay(run: str, step: int, work: str, **faults: Any) -> dict[str, Any] | None:
    """Compute a step of a run again on this rank. What came of it, with its verdict, on rank 0.

    `faults`: see `programs.inject`.
    """
    from dataclasses import asdict

    from wikillm.train.replay import replay_step

    inject(faults)
    found = replay_step(Path(run), step, Path(work))
    return None if found is None else {"verdict": found.verdict, **asdict(found)}


def replay_and_stop(run: str, step: int, work: str, signal_at: int) -> str:
    """`replay` with SIGTERM in the step `signal_at` (from 0). Returns the error."""
    from wikillm.core.errors import StoppedError

    try:
        return f"no error: {replay(run, step, work, signal_at=signal_at)}"
    except StoppedError as error:
        return str(error)
