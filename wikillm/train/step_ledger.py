"""Records the batches of every optimizer step in RUN/ledger.jsonl, as digests summed over ranks.

Each rank hashes the batches that it has handed to the model. The sums are made for several steps
together: when a loss is logged, and before a checkpoint. A kill loses at most the `TOGETHER` latest
lines, all of them after the newest checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from wikillm.data.read.corpus import proportions
from wikillm.data.read.loader import BatchShape, SequenceShard
from wikillm.ledger.digest import digest_of_rows, row_hashes
from wikillm.ledger.record import NAME, LedgerWriter, SkippedWindow, StepLine
from wikillm.train.context import RunContext

TOGETHER = 8
"""Number of steps that are written together when every step logs a loss."""
_MODULUS = 1 << 64


@dataclass(slots=True)
class _Consumed:
    """A step that is not in the ledger yet.

    Attributes:
        digest: sum of the digests of this rank's batches.
        loss: the loss logged after this step (the mean since the previous log), if any.
    """

    step: int
    first: int
    stop: int
    digest: int = 0
    loss: float | None = None


class StepLedger(TrainerCallback):
    """Collects digests on every rank; rank 0 writes them. The trainer flushes before it saves."""

    def __init__(self, context: RunContext, shape: BatchShape, shard: SequenceShard | None) -> None:
        self._group = context.group
        self._shape = shape
        self._shard = shard
        self._pending: list[_Consumed | SkippedWindow] = []
        self._writer: LedgerWriter | None = None
        if context.world.is_main:
            self._writer = LedgerWriter(context.run.path / NAME)
        self._context = context

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin a new segment: training starts, or continues from a checkpoint. (all ranks)"""
        if self._writer is None:
            return
        point = self._context.point
        checkpoint = None
        if point is not None:
            checkpoint = point.checkpoint.name if point.origin else str(point.checkpoint)
        corpus = self._context.corpus
        cfg = self._context.resolved.config
        self._writer.begin(
            step=point.step if point else 0,
            samples=point.consumed_samples if point else 0,
            checkpoint=checkpoint,
            world=self._context.world.size,
            order={
                "store": corpus.manifest.fingerprint,
                "mixture": proportions(corpus.mixture),
                "seed": cfg.run.seed,
                "sequence_length": self._context.plan.sequence_length,
                "window_shards": cfg.data.window_shards,
                "packing": cfg.data.packing,
            },
            time=round(time.time(), 3),
        )

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (loss := kwargs["logs"].get("loss")) is not None:
            self.log(float(loss))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.flush(durable=True)

    def begin_step(self, step: int, first: int, samples: int) -> None:
        """Record that optimizer step `step` (from 1) consumes samples [first, first + samples)."""
        self._pending.append(_Consumed(step, first, first + samples))

    def add_batch(self, micro_step: int, batch: Mapping[str, Any]) -> None:
        """Add the batch (tensors on the host) of micro-step `micro_step` (from 0) of this step."""
        inputs_BT = batch["input_ids"].numpy()
        targets_BT = batch["shift_labels"].numpy()
        column = self._shard.index * inputs_BT.shape[1] if self._shard else 0
        shape = self._shape
        row = (micro_step * shape.world_size + shape.rank) * shape.micro_batch
        hashes = row_hashes(inputs_BT, targets_BT, column)
        step = self._pending[-1]
        assert isinstance(step, _Consumed), "a step has begun"
        step.digest = (step.digest + digest_of_rows(hashes, row)) % _MODULUS

    def skip(self, first: int, stop: int, reason: str) -> None:
        """Record that the samples [first, stop) are skipped here. (all ranks)"""
        self._pending.append(SkippedWindow(first, stop, reason))

    def log(self, loss: float) -> None:
        """Record the loss that was logged after the latest step. (all ranks)"""
        if self._pending and isinstance(latest := self._pending[-1], _Consumed):
            latest.loss = loss if math.isfinite(loss) else None
        if len(self._pending) >= TOGETHER:
            self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Write the collected steps and skipped windows. (all ranks)"""
        steps = [entry for entry in self._pending if isinstance(entry, _Consumed)]
        digests = iter(self._group.sum_modulo([step.digest for step in steps]))
        if self._writer is not None:
            for entry in self._pending:
                if isinstance(entry, SkippedWindow):
                    self._writer.add(entry)
                    continue
                line = StepLine(entry.step, entry.first, entry.stop, next(digests), entry.loss)
                self._writer.add(line)
            self._writer.flush(durable=durable)
        self._pending.clear()
