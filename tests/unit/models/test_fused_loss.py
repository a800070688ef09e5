"""The fused loss in Hugging Face's models: equal losses and gradients, reversible."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.three_layers import build
from transformers import GPT2Config, GPT2LMHeadModel

from wikillm.core.errors import WikiLLMError
from wikillm.models.fused_loss import fused_loss, patch_loss
from wikillm.models.shape import ARCHITECTURES


@pytest.fixture
def model() -> Any:
    return build()


def batch(ignored: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.roll(-1, 1).clone()
    labels[0, :ignored] = -100
    return {"input_ids": ids, "labels": labels, "shift_labels": labels}


def step(model: Any, **inputs: Any) -> tuple[float, dict[str, torch.Tensor], Any]:
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return float(outputs.loss), {n: p.grad.clone() for n, p in model.named_parameters()}, outputs


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [None, 17, torch.tensor(29)])
@pytest.mark.parametrize("shifted", [True, False])
def test_loss_and_gradients_equal_hugging_faces(
    architecture: str, tied: bool, count: Any, shifted: bool
) -> None:
    stock = build(architecture, tie_word_embeddings=tied)
    ours = copy.deepcopy(stock)
    inputs = batch() if shifted else {k: v for k, v in batch().items() if k != "shift_labels"}
    if count is not None:
        inputs["num_items_in_batch"] = count
    patch_loss(ours, rows=36, device_type="cpu")
    loss, gradients, outputs = step(stock, **inputs)
    our_loss, our_gradients, our_outputs = step(ours, **inputs)
    assert our_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == our_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert outputs.logits is not None and our_outputs.logits is None


def test_evaluation_keeps_no_logits(model: Any) -> None:
    model.eval()
    with torch.no_grad():
        expected = model(**batch(), num_items_in_batch=1).loss
        patch_loss(model, rows=36, device_type="cpu")
        found = model(**batch(), num_items_in_batch=1)
        padding = model(
            **batch() | {"shift_labels": torch.full((3, 12), -100)}, num_items_in_batch=1
        )
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-6)
    assert found.logits is None and float(padding.loss) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(input_ids=batch()["input_ids"]).logits,
        lambda m: m(batch()["input_ids"], logits_to_keep=1).logits,
        lambda m: m(**batch(), logits_to_keep=torch.arange(12)).logits,
        lambda m: m.generate(batch()["input_ids"], max_new_tokens=5, do_sample=False),
        lambda m: m.lm_head(torch.ones(2, 32)),
    ],
)
def test_calls_that_return_logits_are_unchanged(
    model: Any, call: Callable[[Any], torch.Tensor]
) -> None:
    model.eval()
    with torch.no_grad():
        before = call(model)
        patch_loss(model, rows=36, device_type="cpu")
        assert torch.equal(call(model), before)


def test_a_second_patch_is_refused(model: Any) -> None:
    patch_loss(model, rows=36, device_type="cpu")
    with pytest.raises(WikiLLMError, match="chunked"):
        patch_loss(model, rows=36, device_type="cpu")


def test_an_unknown_model_is_refused_by_the_patch_and_unchanged_in_evaluation() -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(WikiLLMError, match="train.loss_kernel=stock"):
        patch_loss(other, rows=36, device_type="cpu")
    with fused_loss(other, rows=36) as same:
        assert same is other and "forward" not in other.__dict__


@torch.no_grad()
def test_the_fused_loss_lasts_until_the_end_of_the_outer_block(model: Any) -> None:
    """An inner block changes nothing; after the outer block the model returns logits again."""
    with fused_loss(model, rows=36):
        with fused_loss(model, rows=36):
            assert model(**batch()).logits is None
        assert model(**batch()).logits is None
    assert model(**batch()).logits is not None
    assert "forward" not in {**model.__dict__, **model.lm_head.__dict__}


def test_only_the_training_loss_is_computed_in_8_bit() -> None:
    stock, ours = build(vocab_size=96), build(vocab_size=96)
    inputs = {key: value.clamp(max=95) for key, value in batch().items()}
    assert patch_loss(ours, "fp8", rows=36, device_type="cpu").name == "fp8"
    wanted, gradients, _ = step(stock, **inputs)
    found, our_gradients, _ = step(ours, **inputs)
    assert found == pytest.approx(wanted, rel=2e-3) and found != pytest.approx(wanted, rel=1e-7)
    for name, gradient in gradients.items():
        assert (
            float((our_gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)) < 0.1
        ), name
    ours.eval(), stock.eval()
    assert float(ours(**inputs).loss) == pytest.approx(float(stock(**inputs).loss), rel=1e-6)
