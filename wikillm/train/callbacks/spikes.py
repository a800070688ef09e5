"""Finds loss spikes, reports them with their documents, and with `train.spikes=skip` goes back.

The loss is the mean over the ranks, and so the same on all ranks. Losses stay on the device until
HF logs, which waits for the device anyway, or until a checkpoint is due. So no checkpoint holds the
update of a spike that was not judged.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.core.errors import DivergedError
from wikillm.core.log import say, warn
from wikillm.data.read.step_samples import SkipWindow
from wikillm.observe import names
from wikillm.supervise.alerts import Alerts
from wikillm.supervise.settings import alerts_of, settings_of
from wikillm.train.bad_batch import BadMicroBatch, describe_micro_batch
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.rewind import Rewind
from wikillm.train.spikes import LossSpike, SpikeDetector, write_skips
from wikillm.train.trainer import LOSSES_KEPT, WikiTrainer


class SpikeCallback(TrainerCallback):
    """Judges the loss of every step. Must come before the callbacks that save. (all ranks)"""

    def __init__(self, trainer: WikiTrainer, report: ReportCallback) -> None:
        context = trainer.context
        point = context.point
        self.trainer = trainer
        self.report = report
        cfg = context.resolved.config
        self.train = cfg.train
        self.alerts: Alerts | None = None
        if context.world.is_main:
            self.alerts = alerts_of(context.world, settings_of(cfg.train, cfg.run, cfg.alerts))
            self.alerts.opened = True
        self.detector = SpikeDetector(
            self.train.spike_window,
            self.train.spike_threshold,
            point.state.get("recent_losses", ()) if point else (),
        )
        trainer.recent_losses = self.detector.recent
        self._next = trainer.first_step  # the first step that was not judged
        self._last_spike = -1
        self._arriving: torch.Tensor | None = None

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        pending = state.global_step - self._next
        if control.should_save or state.global_step >= state.max_steps or pending >= LOSSES_KEPT:
            self._judge(self._sums())
        elif control.should_log:
            self._arriving = self._sums().to("cpu", non_blocking=True)

    def on_log(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Judge the copied losses: HF has waited for its loss, so the copy has arrived."""
        arrived = self._arriving
        self._arriving = None
        if arrived is not None:
            self._judge(arrived)

    def _sums(self) -> torch.Tensor:
        """This rank's loss of each step that is not judged yet."""
        losses = [losses.sum() for step, losses in self.trainer.losses if step >= self._next]
        return torch.stack(losses) if losses else torch.zeros(0)

    def _judge(self, sums: torch.Tensor) -> None:
        if not sums.numel():
            return
        group = self.trainer.context.group
        world = self.trainer.context.world.size
        first = self._next
        self._next += sums.numel()
        spikes = []
        for step, loss in enumerate(group.sum(*sums.tolist()), start=first):
            if (spike := self.detector.judge(step, loss / world)) is not None:
                spikes.append(spike)
        if spikes:
            self._act(spikes)

    def _act(self, spikes: list[LossSpike]) -> None:
        """Report the spikes of one check together; with train.spikes=skip, skip their samples."""
        worst = max(spikes, key=lambda spike: spike.loss)
        first = spikes[0].step
        last = spikes[-1].step
        skip = self.train.spikes == "skip"
        is_new = first > self._last_spike + 1
        self._last_spike = last
        batch = self._worst_micro_batch(worst.step)
        where = f"step {first + 1:,}" if first == last else f"steps {first + 1:,} to {last + 1:,}"
        what = f"loss spike at {where}: {worst.loss:.4f}, median {worst.median:.4f}"
        self.report.event(
            names.SPIKE,
            last + 1,
            {
                "steps": [first + 1, last + 1],
                "loss": worst.loss,
                "median": worst.median,
                "limit": worst.limit,
                "action": self.train.spikes,
                "worst_step": worst.step + 1,
                "worst_micro_batch": batch.to_json(),
            },
        )
        if skip or is_new:  # a spike that spans several checks is reported once
            if self.alerts is not None:
                self.alerts.spike(what, last + 1)
            warn("\n".join([what, *(f"  {line}" for line in batch.text().splitlines())]))
        if skip:
            self._skip(first, last, what)

    def _worst_micro_batch(self, step: int) -> BadMicroBatch:
        """The micro-batch with the highest loss of a step, over all ranks. (all ranks)"""
        losses = dict(self.trainer.losses)[step].tolist()
        own = describe_micro_batch(self.trainer, step, losses.index(max(losses)))
        candidates: list[Any] = self.trainer.context.group.gather(own)
        worst: BadMicroBatch = max(candidates, key=lambda each: each.loss)
        return worst

    def _skip(self, first: int, last: int, what: str) -> None:
        """Record the skipped window and go back; raise DivergedError after train.max_skips."""
        context = self.trainer.context
        skips = self.trainer.data.skips
        # The update of the step before the first high loss may be its cause.
        before = max(first - 1, self.trainer.first_step)
        samples = self.trainer.samples
        window = SkipWindow(samples.of(before).start, samples.of(last).stop, what)
        if len(skips) >= self.train.max_skips:
            raise DivergedError(
                f"The loss spiked again, at step {last + 1}, and train.max_skips="
                f"{self.train.max_skips} windows of samples were skipped already.",
                got=what,
                fix="resume with a lower learning rate: --resume auto "
                f"train.learning_rate={self.train.learning_rate / 2:g}; "
                "or a larger train.max_skips; or train.spikes=report, which trains on",
            )
        if context.world.is_main:
            write_skips(context.run.path, [*skips, window])
        context.group.barrier()
        context.heartbeat.enter("save")
        self.trainer.saver.finish()  # go back to the checkpoint that is being written
        say(f"skipping   samples {window.first:,} to {window.stop - 1:,}; going back")
        raise Rewind(what)
