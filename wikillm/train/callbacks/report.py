"""Reports a run while it trains: log table or live view, metrics.jsonl, tracker, report.html.

All ranks measure, rank 0 reports. Evaluation, checkpoints and samples are not measured: the meter
stops after a step that is followed by any of them, and starts again with the next step.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.core.errors import ExitCode
from wikillm.core.log import log_only, say
from wikillm.core.units import format_count, format_seconds
from wikillm.data.order.blocks import SourceUse
from wikillm.evals.loss import weights_of
from wikillm.observe import names
from wikillm.observe.energy import GpuEnergy
from wikillm.observe.format import LogTable
from wikillm.observe.live import LiveView, wants_live_view
from wikillm.observe.meter import Meter
from wikillm.observe.sinks import JsonlSink, Sample, Sink
from wikillm.observe.swanlab import SwanLabSink
from wikillm.plan.gpus import peak_flops
from wikillm.report.background import PageRefresh
from wikillm.report.page import FILE_NAME
from wikillm.train.start_summary import source_line
from wikillm.train.trainer import WikiTrainer

HEADER_EVERY = 25  # log lines between two headers


class ReportCallback(TrainerCallback):
    """Turns HF's log events into readings, lines and records."""

    def __init__(self, trainer: WikiTrainer) -> None:
        self.trainer = trainer
        self.context = context = trainer.context
        cfg = context.resolved.config
        plan = context.plan
        point = context.point
        self.eval_steps = cfg.train.eval_steps
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        on_gpu = torch.cuda.is_available()
        peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
        self.meter = Meter(
            context.world.size,
            flops_per_token=plan.flops_per_token,
            peak_flops=peak,
            tokens=point.trained_samples * plan.sequence_length if point else 0,
            train_seconds=float(point.state.get("train_seconds", 0.0)) if point else 0.0,
            uses_gpu=on_gpu,
        )
        self._energy = GpuEnergy(uses_gpu=on_gpu)
        # The means at the end cover this start only.
        self._tokens_at_start = self.meter.tokens
        self._seconds_at_start = self.meter.train_seconds
        self._table = LogTable(plan.max_steps, plan.total_tokens, has_mfu=peak is not None)
        self._lines = 0
        self._view: LiveView | None = None
        if context.world.is_main and wants_live_view(setting=cfg.observe.live):
            self._view = LiveView(plan.max_steps, plan.total_tokens, cfg.train.save_steps)
        self._waited = 0.0
        self._page = PageRefresh(context.run.path) if context.world.is_main else None
        self.sinks: list[Sink] = []
        if context.world.is_main:
            # The run directory's id lets a resumed run continue its experiment.
            tracker = SwanLabSink(
                cfg.observe.swanlab,
                run_name=cfg.run.name,
                run_dir=context.run.path,
                run_id=context.identity["tracker"],
            )
            self.sinks = [JsonlSink(context.run.path), tracker]
            for sink in self.sinks:
                sink.start({**cfg.model_dump(mode="json"), "plan": plan.to_json()})

    def sources_used(self) -> tuple[SourceUse, ...]:
        """Samples and tokens used so far of each source of a mixture; () without a mixture."""
        return self.trainer.data.order.sources_used(self.trainer.consumed_samples)

    @property
    def mean_tokens_per_second(self) -> float | None:
        """Mean speed since this start of the run; None before the first step."""
        seconds = self.meter.train_seconds - self._seconds_at_start
        return (self.meter.tokens - self._tokens_at_start) / seconds if seconds > 0 else None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self._view is not None:
            self._view.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.start()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.meter.add_wait(self.trainer.data_seconds - self._waited)
        self._waited = self.trainer.data_seconds
        self.meter.step(self.context.plan.global_batch_tokens)
        if self._view is not None:
            self._view.step(state.global_step)
        is_last = state.global_step >= state.max_steps
        if is_last or (self.eval_steps is not None and state.global_step % self.eval_steps == 0):
            control.should_evaluate = True
        control.should_log = control.should_log or is_last
        pauses = control.should_evaluate or control.should_save
        if pauses:
            self.meter.stop()
        self.context.peak.step_done(pauses=pauses)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        state.log_history.clear()  # HF would save the growing list with every checkpoint
        if "loss" not in logs:
            return
        values = {
            **self.meter.read(),
            names.LOSS: float(logs["loss"]),
            names.LEARNING_RATE: float(logs["learning_rate"]),
        }
        if (joules := self._energy.joules()) is not None:
            values[names.ENERGY_JOULES] = joules
        if (tokens := self.context.corpus.train_tokens) is not None:
            values[names.EPOCH] = self.meter.tokens / (tokens - 1)
        for source in self.sources_used():
            values[names.of_source(names.SOURCE_SAMPLES, source.name)] = source.samples
            values[names.of_source(names.SOURCE_TOKENS, source.name)] = source.tokens
            values[names.of_source(names.SOURCE_EPOCHS, source.name)] = round(source.epochs, 6)
        if "grad_norm" in logs:
            values[names.GRAD_NORM] = float(logs["grad_norm"])
        self.last_loss = values[names.LOSS]
        if self.first_loss is None:
            self.first_loss = self.last_loss
        for sink in self.sinks:
            sink.log(state.global_step, values)
        self._show({**values, names.STEP: state.global_step})

    def _show(self, values: dict[str, float]) -> None:
        """Show a log entry in the live view, else as a line. The log file always gets the line."""
        log: Callable[[str], None] = say
        if self._view is not None and self._view.is_shown:
            log = log_only
            self._view.record(values)
        if self._lines % HEADER_EVERY == 0:
            log(self._table.header())
        self._lines += 1
        log(self._table.line(values))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        held_out = self.trainer.held_out
        if held_out is None:
            return
        say(
            f"validation at step {state.global_step:,}: {held_out.loss:.4f} nats/token, "
            f"{held_out.bits_per_byte:.4f} bits/byte on {format_count(held_out.targets)} tokens"
        )
        if self._view is not None:
            self._view.show_evaluation(held_out.loss)
        parts = self.trainer.held_out_of
        if parts:
            say(f"  {weights_of(parts)}")
        values = {
            names.EVAL_LOSS: held_out.loss,
            names.BITS_PER_BYTE: held_out.bits_per_byte,
            names.EVAL_TOKENS: held_out.targets,
        }
        for name, part in parts.items():
            say(f"  of {name}: {part.loss:.4f} nats/token, {part.bits_per_byte:.4f} bits/byte")
            values[names.of_source(names.EVAL_LOSS, name)] = part.loss
            values[names.of_source(names.BITS_PER_BYTE, name)] = part.bits_per_byte
        for sink in self.sinks:
            sink.log(state.global_step, values, names.EVAL)

    def event(self, kind: str, step: int, record: dict[str, Any]) -> None:
        """Add a record to events.jsonl. (rank 0; does nothing on other ranks)"""
        for sink in self.sinks:
            if isinstance(sink, JsonlSink):
                sink.event(kind, step, record)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._page is not None:
            self._page.refresh()

    def show_samples(self, step: int, samples: list[Sample]) -> None:
        """Print sample generations and hand them to the sinks. (rank 0)"""
        for sample in samples:
            text = " ".join(f"{sample.prompt}{sample.text}".split())
            say(f"sample     {text[:160]}")
        for sink in self.sinks:
            sink.text(step, samples)

    def log_end(self, seconds: float) -> None:
        """Log steps, losses, sources and speed, and the next command. (rank 0 prints)"""
        trained = self.meter.tokens - self._tokens_at_start
        here = trained // self.context.plan.global_batch_tokens
        steps = self.trainer.state.global_step
        last = f", the last {here:,}" if 0 < here < steps else ""
        say(f"done       {steps:,} steps{last} in {format_seconds(seconds)}")
        if self.first_loss is not None and self.last_loss is not None:
            say(f"loss       {self.first_loss:.4f} -> {self.last_loss:.4f} nats/token")
        for use in self.sources_used():
            say(f"source     {source_line(use)}")
        if (total := self.trainer.held_out) is not None:
            say(f"held out   {total.loss:.4f} nats/token, {total.bits_per_byte:.4f} bits/byte")
            if self.trainer.held_out_of:
                say(f"           {weights_of(self.trainer.held_out_of)}")
        if (speed := self.mean_tokens_per_second) is not None:
            seconds = self.meter.train_seconds - self._seconds_at_start
            wait = min(1.0, self._waited / seconds)
            waited = f"{wait:.1%} of the time spent waiting for data"
            say(f"speed      {format_count(speed)} tokens/s, {waited}")
        say(f"report     {self.context.run.path / FILE_NAME}")
        run = shlex.quote(str(self.context.run.path))
        say(f"next       wikillm generate {run} --prompt ...   or   wikillm export {run}")

    def close(self, error: BaseException | None) -> None:
        """Finish the sinks, each within its own time limit. Safe while an error is raised."""
        if self._view is not None:
            self._view.stop()
        if self._page is not None:  # a late refresh could overwrite the last page (`exit.ending`)
            self._page.close()
        code = ExitCode.DONE if error is None else getattr(error, "exit_code", ExitCode.BUG)
        reason = None
        if error is not None:
            reason = (str(error) or type(error).__name__).splitlines()[0]
        for sink in self.sinks:
            sink.finish(int(code), reason)
