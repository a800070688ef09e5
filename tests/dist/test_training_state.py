"""A training state leaves one engine as fragments and enters any other by slices, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness.ranks import run_ranks
from harness.training_states import Case, Outcome, Parts, Whole, merged, run_case, run_cases

Saved = tuple[Whole, dict[str, Any]]
STAGES = (None, 0, 1, 2, 3)
LIKE_ONE_RUN = 1e-5
"""Largest relative difference of an fp32 loss to that of one uninterrupted process."""


def run(case: Case, saved: Saved | None, before: int, after: int) -> list[Outcome]:
    """The outcomes of all ranks. They list and count the same, and write about equal shares."""
    builds = 900.0 if case.optimizer == "cpu_adam" else 180.0  # DeepSpeed compiles it once
    ranks: list[Outcome] = run_ranks(
        run_case, case.world, case, saved, before, after, timeout=builds
    )
    check(case, ranks)
    return ranks


def check(case: Case, ranks: list[Outcome]) -> None:
    for outcome in ranks:
        assert outcome.specs == ranks[0].specs
        assert outcome.counters == ranks[0].counters
        assert outcome.losses == ranks[0].losses
    written = [sum(len(values) for _, _, values in o.fragments) for o in ranks]
    assert max(written) < sum(spec.numel for spec in ranks[0].specs) / case.world * 1.1


def taken(ranks: list[Outcome]) -> Whole:
    return merged(ranks[0].specs, [outcome.fragments for outcome in ranks])


def saved_after(ranks: list[Outcome]) -> Saved:
    parts: list[Parts] = [outcome.fragments_after for outcome in ranks]
    return merged(ranks[0].specs_after, parts), ranks[0].counters_after


def differing(found: Whole, meant: Whole) -> list[tuple[str, str]]:
    assert list(found) == list(meant)
    return [key for key in meant if not np.array_equal(found[key], meant[key])]


def assert_continues(case: Case, steps: int = 3) -> None:
    """Save, and load into a new engine of the same kind: all that follows has the same bits."""
    straight = run(case, None, steps, steps)
    saved = taken(straight)
    assert all(np.any(values) for values in saved.values())
    loaded = run(case, (saved, straight[0].counters), steps, steps)
    assert not differing(taken(loaded), saved)
    assert loaded[0].counters == straight[0].counters
    assert loaded[0].losses == straight[0].losses
    meant, counters = saved_after(straight)
    found, found_counters = saved_after(loaded)
    assert found_counters == counters
    assert not differing(found, meant)
    for one, other in zip(loaded, straight, strict=True):
        assert all(map(np.array_equal, one.weights, other.weights))


def assert_chain(cases: list[Case], steps: int, tolerance: float) -> None:
    """Train each case on the state of the one before it, as one run would have gone on."""
    straight = run(Case(1, None, cases[0].optimizer), None, 0, steps * len(cases))
    saved: Saved | None = None
    for number, case in enumerate(cases):
        ranks = run(case, saved, steps * number, steps)
        if saved is not None:
            assert not differing(taken(ranks), saved[0])
        first = steps * number
        meant = straight[0].losses[first : first + steps]
        assert ranks[0].losses == pytest.approx(meant, rel=tolerance)
        saved = saved_after(ranks)
        assert saved[1]["optimizer_step"] == first + steps
        assert saved[1]["scheduler"] == {"last_epoch": first + steps}
    assert saved is not None
    whole, _ = saved_after(straight)
    for key in [key for key in whole if key[0] in ("weight", "average")]:
        np.testing.assert_allclose(saved[0][key], whole[key], atol=tolerance * 50)


def test_a_state_loads_on_other_ranks_and_stages() -> None:
    cases = [Case(1, None), Case(2, 1), Case(2, 3), Case(1, 2), Case(2, None)]
    assert_chain(cases, 2, LIKE_ONE_RUN)


def test_zero0_in_bf16_begins_as_the_other_stages_do() -> None:
    """DeepSpeed's wrapper there takes a step of its own before the first one, which is undone."""
    found = [run(Case(1, stage, precision="bf16"), None, 0, 3)[0] for stage in (0, 2)]
    assert [outcome.counters["optimizer_step"] for outcome in found] == [0, 0]
    assert found[0].losses == found[1].losses


@pytest.mark.deep
def test_a_state_of_muon_loads_on_other_ranks_and_stages() -> None:
    """Newton-Schulz rounds in bf16, so losses are less equal than AdamW's."""
    order = [(2, 3), (4, 1), (2, None), (4, 2), (1, 0), (4, 3), (2, 2), (1, None), (2, 1), (4, 0)]
    assert_chain([Case(world, stage, "muon") for world, stage in order], 2, 1e-3)


OFFLOAD = ("offload_optimizer",)
SAME_ENGINE = [
    *(Case(world, None, name) for world in (1, 2) for name in ("adamw", "muon")),
    *(
        Case(2, stage, name, precision)
        for stage in (0, 1, 2, 3)
        for name in ("adamw", "muon")
        for precision in ("fp32", "bf16")
    ),
    *(Case(4, stage, "muon") for stage in (1, 2, 3)),
    *(Case(2, stage, offload=OFFLOAD) for stage in (1, 2, 3)),
    Case(2, 3, precision="bf16", offload=(*OFFLOAD, "offload_param")),
    Case(2, 2, "cpu_adam", offload=OFFLOAD),
    Case(2, 3, "cpu_adam", "bf16", offload=OFFLOAD),
    Case(2, 1, precision="bf16", json=(("data_types", {"grad_accum_dtype": "fp32"}),)),
    Case(2, 2, zero=(("round_robin_gradients", True), ("parameter_alignment", True))),
    Case(2, 3, zero=(("sub_group_size", 3000),)),
    Case(2, 3, "muon", zero=(("save_muon_momentum_buffer_in_memory", True),)),
    Case(2, 3, json=(("torch_autocast", {"enabled": True, "dtype": "bfloat16"}),)),
]


@pytest.mark.deep
@pytest.mark.parametrize("case", SAME_ENGINE, ids=str)
def test_the_same_engine_goes_on_bit_by_bit(case: Case) -> None:
    assert_continues(case)


@pytest.mark.deep
@pytest.mark.parametrize("stage", STAGES)
def test_every_pair_of_ranks_and_stages(stage: int | None, shared_states: list[Saved]) -> None:
    """Ten steps after a load from each of 15 engines are those of the uninterrupted run."""
    straight = run(Case(1, None), None, 3, 10)[0].losses
    for world in (1, 2, 4):
        case = Case(world, stage)
        outcomes = run_ranks(run_cases, world, case, shared_states, 3, 10, timeout=600)
        for number, saved in enumerate(shared_states):
            ranks = [outcome[number] for outcome in outcomes]
            check(case, ranks)
            assert not differing(taken(ranks), saved[0])
            assert ranks[0].losses == pytest.approx(straight, rel=LIKE_ONE_RUN)


@pytest.fixture(scope="module")
def shared_states() -> list[Saved]:
    """The state of each engine after three steps."""
    ranks = [run(Case(world, stage), None, 3, 0) for stage in STAGES for world in (1, 2, 4)]
    return [saved_after(outcomes) for outcomes in ranks]
