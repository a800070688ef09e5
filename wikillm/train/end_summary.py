"""The summary at the end of a run, and the next command."""

from __future__ import annotations

from wikillm.core.log import say
from wikillm.core.units import format_count, format_seconds
from wikillm.evals.loss import weights_of
from wikillm.report.page import FILE_NAME
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.start_summary import source_line


def log_end_summary(report: ReportCallback, seconds: float) -> None:
    """Log steps, losses, sources and speed. (rank 0 prints)"""
    trainer = report.trainer
    say(f"done       {trainer.state.global_step:,} steps in {format_seconds(seconds)}")
    if report.first_loss is not None and report.last_loss is not None:
        say(f"loss       {report.first_loss:.4f} -> {report.last_loss:.4f} nats/token")
    for use in report.sources_used():
        say(f"source     {source_line(use)}")
    if (total := trainer.held_out) is not None:
        say(f"held out   {total.loss:.4f} nats/token, {total.bits_per_byte:.4f} bits/byte")
        if trainer.held_out_of:
            say(f"           {weights_of(trainer.held_out_of)}")
    if (speed := report.mean_tokens_per_second) is not None:
        wait = report.mean_data_wait
        waited = "" if wait is None else f", {wait:.1%} of the time spent waiting for data"
        say(f"speed      {format_count(speed)} tokens/s{waited}")
    run = report.context.run.path
    say(f"report     {run / FILE_NAME}")
    say(f"next       wikillm generate {run} --prompt ...   or   wikillm export {run}")
