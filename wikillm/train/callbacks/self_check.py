"""Checks a run in its first minute, and logs one block: `self-check`.

The checks compare the schedule's learning rates with the plan and the first loss with ln V, and
look at the first gradient norm. `train.self_check=full` also compares the loss of a micro-batch
with the loss of its rows one by one, at the cost of two forward passes. The losses differ if rows
see each other or if the loss has a wrong scale.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerState

from wikillm.core.errors import MachineError
from wikillm.core.log import say, warn
from wikillm.data.read.loader import Samples
from wikillm.evals.loss import held_out_loss
from wikillm.plan.schedule import five_points
from wikillm.train.trainer import WikiTrainer

NEAR = 0.1
"""Largest relative distance of a random model's loss from ln V."""
_RATES = 1e-6  # largest relative difference of learning rates; both are float64 formulas
_ROWS = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}  # the same for losses, by precision


class SelfCheckCallback(TrainerCallback):
    """Raises for a certain fault, warns about an unusual value. (all ranks)"""

    def __init__(self, trainer: WikiTrainer) -> None:
        context = trainer.context
        self.trainer = trainer
        self.context = context
        self.config = context.resolved.config
        self._lines: list[str] = []
        self._has_logged = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._check_rates()
        if self.config.train.self_check == "full":
            self._check_rows()

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check the first logged loss and norm: HF logs the first step of every start."""
        logs = kwargs["logs"]
        if self._has_logged or "loss" not in logs:
            return
        self._has_logged = True
        norm = float(logs["grad_norm"]) if logs.get("grad_norm") is not None else None
        is_bad = norm is not None and not math.isfinite(norm)
        if self.context.group.any(is_bad)[0]:
            self._lines.append("gradient norm: not finite on a rank")
        elif norm is not None:
            self._lines.append(f"gradient norm {norm:.3g}, finite on every rank")
        if self.context.point is None and self.config.model.init_from is None:
            self._check_first_loss(float(logs["loss"]))
        first, *rest = self._lines
        say("\n".join([f"self-check {first}", *(f"           {line}" for line in rest)]))

    def _check_first_loss(self, loss: float) -> None:
        """Warn if the first loss is far from ln V, the loss of equally probable tokens."""
        rows = self.context.plan.vocab_size
        expected = math.log(rows)
        self._lines.append(f"first loss {loss:.3f}, ln {rows:,} = {expected:.3f}")
        if abs(loss - expected) > NEAR * expected:
            warn(
                f"the first loss is {loss:.3f}; a random model over {rows:,} tokens has about "
                f"{expected:.3f}. Check model.initializer_range "
                f"({self.config.model.initializer_range:g}), and that targets and vocabulary fit"
            )

    def _check_rates(self) -> None:
        """Raise MachineError unless the loaded schedule gives the planned learning rates."""
        plan = self.context.plan
        planned = five_points(
            self.config.train, max_steps=plan.max_steps, warmup_steps=plan.warmup_steps
        )
        schedule: Any = self.trainer.lr_scheduler
        schedule = getattr(schedule, "scheduler", schedule)  # accelerate's wrapper
        base = schedule.base_lrs[0]
        rates = {step: base * schedule.lr_lambdas[0](step - 1) for step in planned}
        peak = self.config.train.learning_rate
        wrong = [step for step in planned if abs(rates[step] - planned[step]) > _RATES * peak]
        if wrong:
            raise MachineError(
                "The schedule's learning rates are not the planned ones.",
                got=", ".join(f"step {s}: {rates[s]:.6g} for {planned[s]:.6g}" for s in wrong),
                fix="use a version of transformers that WikiLLM supports; "
                "train.self_check=off trains with these rates",
            )
        shown = ", ".join(f"{rate:.3g} at {step:,}" for step, rate in planned.items())
        self._lines.append(f"learning rates as planned: {shown}")

    def _check_rows(self) -> None:
        """Raise MachineError if the loss of a row depends on the other rows. (all ranks)"""
        if self.config.train.compile == "layers":
            self._lines.append("rows one by one: left out, the layers are compiled for one shape")
            return
        trainer = self.trainer
        data = trainer.data
        samples = Samples(data.train, data.order, 1, data.mask, data.shard)
        numbers = trainer.samples_of(trainer.first_step, 0)
        data.wait_for(numbers.stop)
        batches = ([samples.batch(numbers)], [samples.batch([number]) for number in numbers])
        results = [
            held_out_loss(
                trainer.model_wrapped,
                each,
                bytes_per_token=1.0,
                device=trainer.args.device,
                sum_over_ranks=self.context.group.sum,
            )
            for each in batches
        ]
        at_once, by_row = (result.loss if result else math.nan for result in results)
        if not abs(at_once - by_row) <= _ROWS[self.context.engine.precision] * by_row:
            raise MachineError(
                "The loss of a sequence depends on the other sequences of its micro-batch.",
                got=f"{at_once:.6f} at once, {by_row:.6f} one by one",
                fix="model.attn_implementation=sdpa, train.loss_kernel=stock; "
                "train.self_check=quick does not compare them",
            )
        self._lines.append(f"micro-batch at once {at_once:.5f}, row by row {by_row:.5f}")
