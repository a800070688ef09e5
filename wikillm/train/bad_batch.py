"""Describes a micro-batch with a bad loss: its samples and the documents behind them.

Each rank describes its own micro-batches; rank 0 reports all descriptions, in RUN/diverged.json and
in the error's text.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from wikillm.core.errors import WikiLLMError
from wikillm.data.inspect.positions import SourcePosition, documents_of
from wikillm.observe.sinks import finite
from wikillm.train.trainer import WikiTrainer

RECORDED = 64
"""Documents of a micro-batch that are recorded."""
SHOWN = 4
"""Documents of a micro-batch that are shown."""


@dataclass(frozen=True, slots=True)
class BadMicroBatch:
    """A micro-batch of one rank. `step` counts from 0; `samples` is [first, stop)."""

    rank: int
    host: str
    step: int
    micro_step: int
    loss: float
    samples: tuple[int, int]
    documents: tuple[SourcePosition, ...]

    def to_json(self) -> dict[str, Any]:
        """Source, byte offset, number and hash of the first `RECORDED` documents."""
        kept = [asdict(document) for document in self.documents[:RECORDED]]
        loss = finite({"loss": self.loss})
        own = {"rank": self.rank, "host": self.host, "micro_step": self.micro_step}
        count = len(self.documents)
        return {**own, **loss, "samples": self.samples, "count": count, "documents": kept}

    def text(self) -> str:
        """Text for an error or a warning: rank, step and samples, then `SHOWN` documents."""
        first, stop = self.samples
        lines = [
            f"rank {self.rank} ({self.host}), micro-step {self.micro_step + 1}, "
            f"samples {first:,} to {stop - 1:,}: loss {self.loss:.4g}"
        ]
        lines += [
            f"  {document.source}: byte {document.offset:,}  (document {document.document:,})"
            for document in self.documents[:SHOWN]
        ]
        if len(self.documents) > SHOWN:
            lines.append(f"  and {len(self.documents) - SHOWN:,} more documents")
        return "\n".join(lines)


def describe_micro_batch(trainer: WikiTrainer, step: int, micro_step: int) -> BadMicroBatch:
    """Describe one of this rank's latest micro-batches. Reading its loss waits for the device.

    If the document index cannot be read, the description has no documents.
    """
    losses = dict(trainer.losses)[step]
    samples = trainer.samples_of(step, micro_step)
    documents: list[SourcePosition] = []
    with suppress(WikiLLMError, OSError):
        documents = documents_of(trainer.context.corpus, trainer.data.order, samples)
    return BadMicroBatch(
        rank=trainer.context.world.rank,
        host=socket.gethostname(),
        step=step,
        micro_step=micro_step,
        loss=float(losses[micro_step]) * len(losses),  # the losses of a step add up to its mean
        samples=(samples.start, samples.stop),
        documents=tuple(documents),
    )


def not_finite(trainer: WikiTrainer) -> list[BadMicroBatch]:
    """This rank's micro-batches of the first step with a loss that is not finite."""
    for step, losses in list(trainer.losses)[-2:]:  # on a GPU, NaN is found one step later
        bad = [number for number, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
        if bad:
            return [describe_micro_batch(trainer, step, number) for number in bad]
    return []
