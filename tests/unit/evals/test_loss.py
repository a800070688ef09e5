"""Held-out loss: exact whatever the batch, padding included; the baseline's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wikillm.data.inspect.stats import unigram_cross_entropy
from wikillm.data.read.loader import eval_loader
from wikillm.evals.loss import HeldOutLoss, combined, held_out_loss, weights_of


class Random:
    n_tokens = 207

    def __init__(self) -> None:
        self._ids = np.random.default_rng(0).integers(0, 64, self.n_tokens).astype(np.uint32)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop]


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32, attention_dropout=0.5,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def reference(model: Qwen2ForCausalLM, length: int) -> float:
    """Sequence by sequence with torch's own cross entropy."""
    ids = torch.tensor(Random().read(0, 207).astype(np.int64))
    model.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, 206, length):
            piece = ids[start : start + length + 1]
            logits = model(input_ids=piece[None, :-1]).logits[0].double()
            losses += torch.nn.functional.cross_entropy(
                logits, piece[1:], reduction="none"
            ).tolist()
    model.train()
    assert len(losses) == 206, "every target but the first token"
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (4, 1), (8, 3)])
def test_the_loss_does_not_depend_on_batch_or_ranks(
    model: Qwen2ForCausalLM, micro: int, world: int
) -> None:
    batches = [
        b
        for rank in range(world)
        for b in eval_loader(Random(), 16, micro_batch=micro, world_size=world, rank=rank)
    ]
    result = held_out_loss(model, batches, bytes_per_token=3.0, device="cpu")
    assert result is not None
    assert result.targets == 206
    assert result.loss == pytest.approx(reference(model, 16), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) / 3.0)
    how = {"bytes_per_token": 3.0, "device": "cpu", "should_stop": lambda: True}
    assert held_out_loss(model, batches, **how) is None
    assert model.training, "the mode is restored"


def test_the_loss_of_a_mixture_says_its_weights() -> None:
    parts = {"a": HeldOutLoss(2.0, 1.0, 300), "b": HeldOutLoss(4.0, 1.0, 100)}
    assert combined(parts.values()).loss == pytest.approx(2.5)
    assert (
        weights_of(parts) == "weighted by held-out tokens (a 75.0%, b 25.0%), not by data.mixture"
    )


def test_unigram_cross_entropy_is_the_entropy_of_the_counts() -> None:
    assert unigram_cross_entropy(np.array([5, 5, 0, 0])) == pytest.approx(math.log(2))
    assert unigram_cross_entropy(np.array([7, 0])) == 0.0
    assert unigram_cross_entropy(np.array([1, 2, 1])) == pytest.approx(1.5 * math.log(2))
