"""The z-loss in a model: fused and stock equal float64; none in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wikillm.kernels import reference
from wikillm.models.fused_loss import patch_loss
from wikillm.models.z_loss import ZLoss

COEFFICIENT = 0.05


@pytest.fixture
def model() -> Any:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24, tie_word_embeddings=False, pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


def truth(model: Any, count: float) -> tuple[float, float, torch.Tensor]:
    """(loss with the z-loss, its part, gradient of lm_head) by the reference in float64."""
    hidden = model.model(batch()["input_ids"]).last_hidden_state[:, :-1].reshape(-1, 16).detach()
    labels = batch()["labels"][:, 1:].reshape(-1)
    weight = model.lm_head.weight.detach().clone().requires_grad_()
    whole = reference.linear_cross_entropy(hidden, weight, labels, count=count, z_loss=COEFFICIENT)
    whole.backward()
    plain = reference.linear_cross_entropy(hidden, weight.detach(), labels, count=count)
    assert weight.grad is not None
    return float(whole), float(whole.detach() - plain), weight.grad


@pytest.mark.parametrize("kernel", ["chunked", "stock"])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("count", [None, 40])
def test_loss_part_and_gradient_are_the_references(
    kernel: Any, shifted: bool, count: int | None, model: Any
) -> None:
    z, inputs = ZLoss(COEFFICIENT), dict(batch())
    whole, part, gradient = truth(model, count or 16)
    patch_loss(model, kernel, rows=18, device_type="cpu", z_loss=z)
    if shifted:
        inputs["shift_labels"] = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[
            :, 1:
        ].contiguous()
    loss = model(**inputs, **({} if count is None else {"num_items_in_batch": count})).loss
    loss.backward()
    # Hugging Face's own loss rounds the logits to float32.
    tolerance = 1e-10 if kernel == "chunked" else 1e-5
    assert float(loss.detach()) == pytest.approx(whole, rel=tolerance)
    assert z.latest is not None and not z.latest.requires_grad
    assert float(z.latest) == pytest.approx(part, rel=1e-6)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("kernel", ["chunked", "stock"])
def test_evaluation_has_none_of_it(kernel: Any, model: Any) -> None:
    z, plain = ZLoss(COEFFICIENT), copy.deepcopy(model).eval()
    patch_loss(model, kernel, rows=18, device_type="cpu", z_loss=z)
    model.eval()
    with torch.no_grad():
        assert float(model(**batch()).loss) == pytest.approx(float(plain(**batch()).loss), rel=1e-6)
    assert z.latest is None
