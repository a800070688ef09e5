"""The order of samples: bijective, uniform, reproducible, and computable anywhere without a table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.order import Permutation, SampleOrder, keyed_hash


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection_with_an_inverse(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    images = permutation(np.arange(size))
    assert sorted(images.tolist()) == list(range(size))
    for index in {0, size // 2, size - 1}:
        assert permutation.inverse(int(images[index])) == index


def test_permutation_refuses_an_index_outside() -> None:
    with pytest.raises(IndexError, match="outside a permutation of 10"):
        Permutation(10, 1)(10)


def test_every_position_gets_every_block_about_equally_often() -> None:
    """Chi-square over (position, block) for 4,000 keys; 11x11 cells, df = 100, 99.99 % quantile about 161."""
    size, keys = 11, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), Permutation(size, keyed_hash(key, "uniform"))(np.arange(size))] += 1
    expected = keys / size
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 161, f"chi-square {chi_square:.0f}: some blocks prefer some positions"


def test_neighbours_do_not_stay_neighbours() -> None:
    """For uniform permutations the number of preserved successions is Poisson(1); 10 has probability 1e-7."""
    for key in range(20):
        images = Permutation(5000, keyed_hash(key, "neighbours"))(np.arange(5000))
        assert (np.diff(images) == 1).sum() < 10


@given(n=st.integers(2, 700), t=st.integers(2, 40), seed=st.integers(0, 1000), shuffle=st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_target_exactly_once_per_epoch(n: int, t: int, seed: int, shuffle: bool) -> None:
    order = SampleOrder(n, t, seed, shuffle)
    blocks = order.blocks_per_epoch
    for epoch in range(3):
        seen = np.zeros(n - 1, dtype=int)
        starts, counts = order.locate(np.arange(epoch * blocks, (epoch + 1) * blocks))
        for start, count in zip(starts, counts, strict=True):
            np.add.at(seen, (start + np.arange(count)) % (n - 1), 1)
        assert (seen == 1).all()


@given(n=st.integers(2, 500), t=st.integers(2, 30), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=80, deadline=None)
def test_targets_between_counts_what_locate_gives(n: int, t: int, seed: int, data: st.DataObject) -> None:
    order = SampleOrder(n, t, seed)
    first = data.draw(st.integers(0, 4 * order.blocks_per_epoch))
    stop = data.draw(st.integers(first, first + 3 * order.blocks_per_epoch))
    counts = order.locate(np.arange(first, stop))[1] if stop > first else np.array([], dtype=int)
    assert order.targets_between(first, stop) == counts.sum()


def test_epochs_differ_in_order_and_phase_and_seeds_differ() -> None:
    order = SampleOrder(10_008, 10, seed=1)
    first, second = order.locate(np.arange(1000))[0], order.locate(np.arange(1000, 2000))[0]
    assert (first != second).mean() > 0.99
    assert set(first) != set(second)  # cut at other places
    assert (first != SampleOrder(10_008, 10, seed=2).locate(np.arange(1000))[0]).mean() > 0.99


def test_the_order_does_not_change_between_versions() -> None:
    """Pinned: a change here silently re-orders every run that is resumed with a newer version."""
    starts, counts = SampleOrder(1003, 10, seed=3).locate([0, 1, 100, 101, 10**9])
    assert starts.tolist() == [699, 599, 539, 368, 20]
    assert counts.tolist() == [10, 10, 10, 10, 10]


def test_positions_of_a_huge_stream() -> None:
    order = SampleOrder(15 * 10**12, 4096, seed=0)
    starts, counts = order.locate([10**9, 3 * 10**9])
    assert (counts == 4096).all() and (starts < order.targets_per_epoch).all()


def test_one_token_is_refused() -> None:
    with pytest.raises(DataError, match="fewer than two tokens"):
        SampleOrder(1, 10, seed=0)
