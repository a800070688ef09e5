"""Closed formulas give the published counts and the worked example of the 120M model."""

from __future__ import annotations

import pytest

from wikillm.config.load import load
from wikillm.config.presets import load_preset, preset_names
from wikillm.plan.gpus import peak_flops
from wikillm.plan.params import count_parameters, flops_per_token


@pytest.mark.parametrize("name", preset_names("models"))
def test_the_formula_gives_the_documented_count(name: str) -> None:
    model = load(None, [f"model.preset={name}"]).config.model
    assert isinstance(model.vocab_size, int)
    assert count_parameters(model, model.vocab_size).total == load_preset("models", name).parameters


def test_flops_of_the_120m_model_at_512() -> None:
    # 6 x (45,613,056 body + 151,646 x 512 head) + 12 x 12 x 512 x 512
    assert flops_per_token(load().config.model, 151_646, 512) == 777_283_584


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H20", 148.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA H20-3e", 148.0),
        ("NVIDIA A1000", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_drivers_name(device: str, tflops: float | None) -> None:
    assert peak_flops(device) == (None if tflops is None else tflops * 1e12)
