"""Sets this start's optimizer and schedule settings again after a checkpoint was loaded.

An optimizer's state_dict holds options (rates, betas, epsilon, decay), a scheduler's holds base
rates, and DeepSpeed's also holds the clipping norm and the loss scaler's settings. Loading them
overwrites the configuration, so they are set again. Only the moments, the step counts and the
current loss scale come from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wikillm.train.fragments.counters import scaler_counters, set_scaler_counters

_NOT_OPTIONS = ("params", "lr", "initial_lr", "step")


@dataclass(frozen=True, slots=True)
class StartSettings:
    """The settings that optimizer and schedule were created with, by parameter group."""

    options: tuple[Mapping[str, Any], ...]
    base_rates: tuple[float, ...]
    clip_grad: float | None  # of DeepSpeed's optimizers; None elsewhere
    loss_scaler: Any  # of DeepSpeed's optimizers; None elsewhere

    @classmethod
    def of(cls, optimizer: Any, scheduler: Any) -> StartSettings:
        """Read the settings before anything is loaded.

        Args:
            optimizer: accelerate's wrapper of the optimizer.
            scheduler: a LambdaLR, as are all of Hugging Face's schedulers.
        """
        groups = [
            {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
            for group in optimizer.param_groups
        ]
        engine = getattr(optimizer, "optimizer", optimizer)
        return cls(
            options=tuple(groups),
            base_rates=tuple(scheduler.base_lrs),
            clip_grad=getattr(engine, "clip_grad", None),
            loss_scaler=getattr(engine, "loss_scaler", None),
        )

    def reapply(self, optimizer: Any, scheduler: Any) -> None:
        """Apply the settings to the loaded states; the next rate follows from the loaded step."""
        scheduler.base_lrs = list(self.base_rates)
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(self.base_rates, scheduler.lr_lambdas, strict=True)
        ]
        scheduler._last_lr = rates
        changes = zip(self.options, self.base_rates, rates, strict=True)
        for group, (options, base, rate) in zip(optimizer.param_groups, changes, strict=True):
            group.update(options)
            group["initial_lr"] = base
            group["lr"] = rate
        engine = getattr(optimizer, "optimizer", optimizer)
        if self.clip_grad is not None:
            engine.clip_grad = self.clip_grad
        if self.loss_scaler is not None:
            engine.loss_scaler = with_state(self.loss_scaler, engine.loss_scaler)
            engine.dynamic_loss_scale = engine.loss_scaler.dynamic


def with_state(fresh: Any, loaded: Any) -> Any:
    """DeepSpeed's loss scaler `fresh`, with the state of `loaded` where both are dynamic."""
    if type(fresh) is type(loaded) and getattr(fresh, "dynamic", False):
        set_scaler_counters(fresh, scaler_counters(loaded))
    return fresh
