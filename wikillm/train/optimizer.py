"""Muon for the weight matrices, AdamW for embeddings, output head, norms and biases.

Muon (https://kellerjordan.github.io/posts/muon/): momentum m = b m + (1 - b) g, Nesterov
g + b (m - g), its nearest orthogonal matrix by five Newton-Schulz steps in bf16, times
sqrt(max(1, rows / columns)), decoupled weight decay. AdamW's parameters have no weight decay.
Without DeepSpeed, torch's Muon is used; under ZeRO 0 to 3, DeepSpeed's with
`ns_method="standard"`, which is the same rule. Roundings inside Newton-Schulz differ (addmm
against separate products, both in bf16): losses agree to about 1e-3.

DeepSpeed's Muon is built here and not by an "optimizer" block of the JSON. With such a block,
DeepSpeed has one flat list of parameters, and weight decay would reach norms and biases. DeepSpeed
recognises Muon by the class, and its matrices by `use_muon` on parameters. AdamW's groups come
first, so the logged learning rate is AdamW's; the schedule scales both rates alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wikillm.config.schema_train import TrainSection
from wikillm.models.init import FINAL_NORM

LAST_NORM_RATE = 4.0
"""The last norm's rate: AdamW's times this factor times its initial weight, at most AdamW's.

The initial weight falls as 1 / width, so at large widths a step of AdamW's own rate would change it
by a multiple of itself. Measured at widths of 256, 512 and 1,024:
docs/measurements/2026-11-28-speedrun.md.
"""
_NOT_HIDDEN = ("embed_tokens", "lm_head")


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether the parameter is a matrix of a layer, which Muon trains."""
    return _is_matrix(parameter) and not any(part in name for part in _NOT_HIDDEN)


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Under ZeRO-3, a parameter is empty and `ds_shape` is its shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) == 2


def parameter_groups(
    model: nn.Module, train: TrainSection, final_norm_init: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for AdamW (embeddings and head, norms and biases, the last norm), and for Muon.

    Empty groups are left out.

    Args:
        train: rates, momenta and weight decay. Only Muon's matrices decay: at AdamW's rate beside
            Muon, decay would halve a rare token's embedding within some hundred steps.
        final_norm_init: initial weight of the last norm. Below 1/4 the last norm has a group of
            its own, whose rate is AdamW's times `LAST_NORM_RATE * final_norm_init`.
    """
    # Mark the hidden matrices, since DeepSpeed's Muon finds them by `use_muon`.
    names = dict(model.named_parameters())
    hidden = {name for name, parameter in names.items() if is_hidden_matrix(name, parameter)}
    tables = {name for name, parameter in names.items() if _is_matrix(parameter)} - hidden
    last_rate = min(1.0, LAST_NORM_RATE * final_norm_init)
    last = {name for name in names if name.endswith(FINAL_NORM) and last_rate < 1}
    for name, parameter in names.items():
        parameter.use_muon = name in hidden  # type: ignore[attr-defined]  # read by DeepSpeed
    # AdamW's groups come first: the logged learning rate is the first group's.
    adam: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
        "weight_decay": 0.0,
        "use_muon": False,
    }
    muon: dict[str, Any] = {
        "lr": train.muon_learning_rate,
        "momentum": train.muon_momentum,
        "weight_decay": train.weight_decay,
        "use_muon": True,
    }
    chosen = [
        (tables, adam),
        (set(names) - hidden - tables - last, adam),
        (last, adam | {"lr": train.learning_rate * last_rate}),
        (hidden, muon),
    ]
    return [
        {"params": [names[name] for name in names if name in members], **options}
        for members, options in chosen
        if members
    ]


def build_muon(groups: list[dict[str, Any]], *, under_deepspeed: bool) -> torch.optim.Optimizer:
    """The optimizer for `parameter_groups`.

    Under DeepSpeed on a CPU, this switches torch.compile off for the whole process.
    """
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    fused = on_gpu and torch.cuda.is_available()
    if not under_deepspeed:
        return MuonAndAdamW(groups, fused=fused)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if not fused:
        # DeepSpeed compiles its Newton-Schulz: minutes on a CPU, and no faster there.
        torch.compiler.set_stance("force_eager")
    groups = [group | ({"ns_method": "standard"} if group["use_muon"] else {}) for group in groups]
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(
        groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": fused}
    )
    return optimizer


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW as one optimizer: one list of groups, one state_dict."""

    def __init__(self, groups: list[dict[str, Any]], *, fused: bool = False) -> None:
        super().__init__(groups, {})
        adam = self._part(torch.optim.AdamW, use_muon=False, fused=fused)
        muon = self._part(torch.optim.Muon, use_muon=True, nesterov=True, adjust_lr_fn="original")
        self._parts = [part for part in (adam, muon) if part is not None]

    def _part(
        self, kind: Callable[..., torch.optim.Optimizer], *, use_muon: bool, **options: Any
    ) -> tuple[torch.optim.Optimizer, bool] | None:
        """An optimizer for the groups with this `use_muon`, whose options are added to them."""
        groups = self._groups(use_muon)
        if not groups:
            return None
        part = kind([dict(group) for group in groups], **options)
        for ours, theirs in zip(groups, part.param_groups, strict=True):
            for key, value in theirs.items():
                ours.setdefault(key, value)
        return part, use_muon

    def _groups(self, use_muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["use_muon"] is use_muon]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, use_muon in self._parts:
            # A schedule or a checkpoint may have replaced our groups and state.
            part.param_groups = self._groups(use_muon)
            part.state = self.state
            part.step()
        return loss
