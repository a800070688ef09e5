"""zero_init_outputs: layers begin as the identity; every other weight is unchanged."""

from __future__ import annotations

import torch
from harness.tiny_model import tiny_model

from wikillm.models.init import OUTPUTS, initialise_weights


def test_outputs_are_zero_and_layers_the_identity() -> None:
    plain, zero = tiny_model(), tiny_model()
    initialise_weights(plain, 7, 0.02)
    initialise_weights(zero, 7, 0.02, zero_outputs=True)
    expected = dict(plain.named_parameters())
    outputs = {name for name in expected if name.endswith(OUTPUTS)}
    assert len(outputs) == 2 * plain.config.num_hidden_layers
    for name, parameter in zero.named_parameters():
        assert torch.equal(
            parameter, torch.zeros_like(parameter) if name in outputs else expected[name]
        ), name
    states = zero(torch.arange(9)[None], output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])
