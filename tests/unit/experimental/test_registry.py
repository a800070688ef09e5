"""What each experiment says of itself, and the sizes and devices that fp8 refuses."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import MachineError
from wikillm.experimental.registry import LOSSES
from wikillm.kernels.dispatch import check_loss_kernel


def test_every_experiment_has_a_switch_and_a_measurement() -> None:
    legal = get_args(TrainSection.model_fields["loss_kernel"].annotation)
    for name, experiment in LOSSES.items():
        key, _, value = experiment.switch.partition("=")
        assert (key, value) == ("train.loss_kernel", name) and name in legal
        assert experiment.measurement.startswith("python benchmarks/")
    assert TrainSection.model_fields["loss_kernel"].default not in LOSSES


def test_8_bit_floats_need_their_shapes_and_a_gpu_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(hidden: int, vocab: int, device: str) -> None:
        check_loss_kernel("fp8", hidden=hidden, vocab=vocab, device_type=device)

    check(32, 640, "cpu")
    with pytest.raises(
        MachineError, match="hidden_size 24 is not a multiple of 16; model.vocab_size 601"
    ):
        check(24, 601, "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(MachineError, match=r"A100 has compute capability 8\.0"):
        check(32, 640, "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check(32, 640, "cuda")
