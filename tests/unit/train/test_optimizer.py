"""Muon: which parameters it trains, its rule against float64, torch's against DeepSpeed's steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from wikillm.config.schema_train import TrainSection
from wikillm.train.optimizer import MuonAndAdamW, build_muon, parameter_groups

SETTINGS = TrainSection(
    muon_learning_rate=0.02,
    muon_momentum=0.9,
    learning_rate=3e-3,
    weight_decay=0.1,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_epsilon=1e-8,
)
HIDDEN = ("tall.weight", "wide.weight", "square.weight")


class Tiny(nn.Module):
    """The names and ranks of parameters that matter, with a tall, a wide and a square matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 6)
        self.tall = nn.Linear(6, 24)
        self.wide = nn.Linear(24, 6, bias=False)
        self.square = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6, bias=False)
        self.lm_head = nn.Linear(6, 11, bias=False)


@pytest.fixture(autouse=True)
def compilation_as_before() -> Iterator[None]:
    """DeepSpeed's Muon switches torch.compile off on CPU; tests share the process."""
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.3


def train(model: nn.Module, *, under_deepspeed: bool, steps: int = 4) -> dict[str, torch.Tensor]:
    groups = parameter_groups(model, SETTINGS)
    optimizer = build_muon(groups, under_deepspeed=under_deepspeed)
    for step in range(steps):
        set_gradients(model, step)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_muon_trains_the_matrices_of_layers_and_nothing_else(model: Tiny) -> None:
    groups = parameter_groups(model, SETTINGS)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [sorted(names[id(parameter)] for parameter in group["params"]) for group in groups]
    assert found == [
        ["embed_tokens.weight", "lm_head.weight"],
        ["norm.weight", "tall.bias"],
        ["square.weight", "tall.weight", "wide.weight"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0, 0.1]
    assert [group["lr"] for group in groups] == [3e-3, 3e-3, 0.02]


def test_the_last_norm_changes_in_proportion_to_its_first_weight(model: Tiny) -> None:
    whole = nn.Module()
    whole.model = model
    assert len(parameter_groups(whole, SETTINGS, final_norm_init=0.25)) == 3, "a rate of its own"
    groups = parameter_groups(whole, SETTINGS, final_norm_init=0.125)
    assert [group["lr"] for group in groups] == [3e-3, 3e-3, 0.5 * 3e-3, 0.02]
    assert len(groups[2]["params"]) == 1, "more than the last norm"
    assert groups[2]["params"][0] is model.norm.weight, "another parameter"


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """Five quintic steps in float64, with the coefficients of Muon's post."""
    x = matrix.double() / (matrix.double().norm() + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("under_deepspeed", [False, True])
def test_the_update_follows_the_published_rule(under_deepspeed: bool, model: Tiny) -> None:
    """Against float64; bf16's rounding inside Newton-Schulz remains (1 to 4 %)."""
    weights = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    start = copy.deepcopy(weights)
    for step in range(4):
        set_gradients(model, step)
        for name in HIDDEN:
            gradient = model.get_parameter(name).grad.double()  # type: ignore[union-attr]
            momenta[name].lerp_(gradient, 0.1)
            update = newton_schulz(gradient.lerp(momenta[name], 0.9))
            rows, columns = update.shape
            scale = 0.02 * math.sqrt(max(1, rows / columns))
            weights[name].mul_(1 - 0.02 * 0.1).sub_(scale * update)
    found = train(model, under_deepspeed=under_deepspeed)
    for name in HIDDEN:
        error = (found[name].double() - weights[name]).norm() / (weights[name] - start[name]).norm()
        assert error < 0.06, name


def test_torch_and_deepspeed_step_alike(model: Tiny) -> None:
    """AdamW's share is bit-equal; Muon's to bf16's rounding."""
    other = copy.deepcopy(model)
    start = copy.deepcopy(model.state_dict())
    plain = train(model, under_deepspeed=False)
    deepspeed = train(other, under_deepspeed=True)
    for name, weight in plain.items():
        if name in HIDDEN:
            error = (weight - deepspeed[name]).norm() / (weight - start[name]).norm()
            assert error < 0.06, name
        else:
            assert torch.equal(weight, deepspeed[name]), name


def test_state_goes_through_a_checkpoint_bit_by_bit(model: Tiny) -> None:
    other = copy.deepcopy(model)
    whole = train(model, under_deepspeed=False, steps=4)
    first = MuonAndAdamW(parameter_groups(other, SETTINGS))
    for step in range(2):
        set_gradients(other, step)
        first.step()
    second = MuonAndAdamW(parameter_groups(other, SETTINGS))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        set_gradients(other, step)
        second.step()
    assert all(torch.equal(whole[name], parameter) for name, parameter in other.named_parameters())
