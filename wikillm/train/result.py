"""What a finished run returns, and the summary that is logged at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wikillm.core.log import say
from wikillm.core.units import format_count, format_seconds
from wikillm.data.order.blocks import SourceUse
from wikillm.evals.loss import HeldOutLoss, weights_of
from wikillm.plan.run_plan import Plan
from wikillm.train.start_summary import source_line


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A run that reached its horizon.

    Losses in nats per token; None where this process has none.
    """

    run_dir: Path
    plan: Plan
    steps: int  # optimizer steps since step 0
    first_loss: float | None
    last_loss: float | None
    held_out: HeldOutLoss | None
    tokens_per_second: float | None
    seconds: float
    sources: tuple[SourceUse, ...] = ()  # of a mixture
    held_out_of: Mapping[str, HeldOutLoss] = field(default_factory=dict)  # by source of a mixture
    data_wait: float | None = None  # share of the training time spent waiting for batches


def log_result(result: TrainResult) -> None:
    """Log the end of a run in a few lines, and the next command. (rank 0 prints)"""
    say(f"done       {result.steps:,} steps in {format_seconds(result.seconds)}")
    if result.first_loss is not None and result.last_loss is not None:
        say(f"loss       {result.first_loss:.4f} -> {result.last_loss:.4f} nats/token")
    for use in result.sources:
        say(f"source     {source_line(use)}")
    if (total := result.held_out) is not None:
        say(f"held out   {total.loss:.4f} nats/token, {total.bits_per_byte:.4f} bits/byte")
        if result.held_out_of:
            say(f"           {weights_of(result.held_out_of)}")
    if result.tokens_per_second is not None:
        speed = f"{format_count(result.tokens_per_second)} tokens/s"
        wait = result.data_wait
        waited = "" if wait is None else f", {wait:.1%} of the time spent waiting for data"
        say(f"speed      {speed}{waited}")
    run = result.run_dir
    say(f"next       wikillm generate {run} --prompt ...   or   wikillm export {run}")
