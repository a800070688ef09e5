"""The order of samples: bijective, uniform, reproducible, and computable anywhere without a table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.order.blocks import Permutation, SampleOrder, keyed_hash, window_ends


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


@given(
    n=st.integers(2, 700), t=st.integers(2, 40), seed=st.integers(0, 1000), shuffle=st.booleans()
)
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
def test_targets_between_counts_what_locate_gives(
    n: int, t: int, seed: int, data: st.DataObject
) -> None:
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


windows = st.lists(st.integers(0, 90), min_size=1, max_size=9).filter(
    lambda shards: sum(shards) >= 2
)


@given(shards=windows, k=st.integers(1, 4), t=st.integers(2, 40), seed=st.integers(0, 1000))
@settings(max_examples=100)
def test_windows_give_every_target_once_per_epoch_and_in_their_own_time(
    shards: list[int], k: int, t: int, seed: int
) -> None:
    order = SampleOrder(sum(shards), t, seed, windows=window_ends(shards, k))
    first, later, n = order.blocks_of_first_epoch, order.blocks_per_epoch, order.targets_per_epoch
    borders = [first + epoch * later for epoch in range(3)]
    for start, stop in zip([0, *borders], borders, strict=False):
        pieces = [
            piece for sample in order.target_ranges(np.arange(start, stop)) for piece in sample
        ]
        seen = np.concatenate([np.arange(*piece) for piece in pieces])
        assert sorted(seen.tolist()) == list(range(n))
    sample = 0
    for window in range(
        0, len(shards), k
    ):  # epoch 1: the targets of a window, all before those of the next one
        low, high = max(sum(shards[:window]), 1) - 1, max(sum(shards[: window + k]), 1) - 1
        count = -(-(high - low) // t)
        ranges = [
            piece
            for found in order.target_ranges(np.arange(sample, sample + count))
            for piece in found
        ]
        assert all(low <= start < stop <= high for start, stop in ranges)
        if count:
            assert (
                order.end_of_window(sample)
                == order.end_of_window(sample + count - 1)
                == sample + count
            )
        sample += count


@given(
    shards=windows,
    k=st.integers(1, 4),
    t=st.integers(2, 40),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=100)
def test_a_beginning_in_whole_windows_has_the_order_of_the_whole(
    shards: list[int], k: int, t: int, seed: int, data: st.DataObject
) -> None:
    """What streaming stands on: later shards change nothing in the samples of the windows before them."""
    whole = SampleOrder(sum(shards), t, seed, windows=window_ends(shards, k))
    known = shards[: k * data.draw(st.integers(1, len(shards)))]
    if sum(known) < 2:
        return
    part = SampleOrder(sum(known), t, seed, windows=window_ends(known, k))
    samples = np.arange(part.blocks_of_first_epoch)
    assert part.target_ranges(samples) == whole.target_ranges(samples)
    stop = data.draw(st.integers(0, len(samples)))
    assert part.targets_between(0, stop) == whole.targets_between(0, stop)


@given(
    shards=windows,
    k=st.integers(1, 4),
    t=st.integers(2, 30),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=100)
def test_targets_between_counts_what_locate_gives_in_windows(
    shards: list[int], k: int, t: int, seed: int, data: st.DataObject
) -> None:
    order = SampleOrder(sum(shards), t, seed, windows=window_ends(shards, k))
    first = data.draw(st.integers(0, 3 * order.blocks_of_first_epoch))
    stop = data.draw(st.integers(first, first + 3 * order.blocks_of_first_epoch))
    counts = order.locate(np.arange(first, stop))[1] if stop > first else np.array([], dtype=int)
    assert order.targets_between(first, stop) == counts.sum()


def test_a_store_of_one_window_has_the_order_it_had_without_windows() -> None:
    samples = np.arange(400)
    plain, one = (
        SampleOrder(1003, 10, seed=3),
        SampleOrder(1003, 10, seed=3, windows=window_ends([500, 503], 2)),
    )
    assert plain.target_ranges(samples) == one.target_ranges(samples)
    several = SampleOrder(1003, 10, seed=3, windows=window_ends([500, 503], 1))
    after = several.blocks_of_first_epoch
    assert several.target_ranges(np.arange(after, 400)) == plain.target_ranges(
        np.arange(plain.blocks_per_epoch, 400 - after + 101)
    )


def test_blocks_are_uniform_inside_a_window() -> None:
    """Chi-square over (position, block) of the second of three windows; 11x11 cells, 99.99 % quantile about 161."""
    size, seeds = 11, 4000
    counts = np.zeros((size, size))
    for seed in range(seeds):
        order = SampleOrder(331, 10, seed, windows=(111, 221, 331))
        (ring,) = {order._ring_of(sample) for sample in range(size, 2 * size)}
        image = order._ring(ring).permutation(seed, 10)(np.arange(size))
        counts[np.arange(size), image] += 1
    expected = seeds / size
    assert float(((counts - expected) ** 2 / expected).sum()) < 161


def test_positions_in_a_hundred_thousand_windows() -> None:
    shards = np.full(800_000, 18_000_000)
    order = SampleOrder(int(shards.sum()), 4096, seed=0, windows=window_ends(shards, 8))
    starts, counts = order.locate([10**9, 3 * 10**9, 4 * 10**9])
    assert (counts == 4096).all() and (starts < order.targets_per_epoch).all()
    assert order.targets_between(10**9, 10**9 + 256) >= 255 * 4096


def test_windows_that_do_not_make_up_the_stream_are_refused() -> None:
    with pytest.raises(ValueError, match="do not make up 100 tokens"):
        SampleOrder(100, 10, seed=0, windows=(50, 99))


@pytest.mark.parametrize("size, keys", [(7, 4000), (64, 1500), (300, 600)])
def test_first_position_block_and_distance_are_uniform(size: int, keys: int) -> None:
    """Chi-square of where the last block is read, of which block is first, and of the distance of two neighbours.

    Fixed keys, so each statistic is one number; its bound is mean + 5 standard deviations of chi-square with size - 1
    degrees of freedom (size - 2 for the distance, which is never 0).
    """
    first, last, distance = (np.zeros(size) for _ in range(3))
    for seed in range(keys):
        permutation = Permutation(size, keyed_hash(seed, "positions", size))
        images = permutation(np.array([0, 1]))
        first[images[0]] += 1
        distance[(images[1] - images[0]) % size] += 1
        last[permutation.inverse(size - 1)] += 1
    for name, counts in (("first", first), ("last", last), ("distance", distance[1:])):
        expected, freedom = keys / len(counts), len(counts) - 1
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5, (
            f"{name} of {size}: chi-square {chi_square:.0f}"
        )


def test_a_large_permutation_spreads_every_stretch_over_the_whole() -> None:
    """Chi-square of 4,096 consecutive positions of 10^9 over 64 equal parts of the blocks; df = 63, 5 sigma about 119."""
    size = 10**9
    for first in (0, 123_456_789, size - 4096):
        images = Permutation(size, keyed_hash(first, "stretch"))(np.arange(first, first + 4096))
        counts = np.bincount(images * 64 // size, minlength=64)
        assert len(np.unique(images)) == 4096
        assert float(((counts - 64) ** 2 / 64).sum()) < 119


def test_a_place_is_the_same_asked_for_alone_or_among_others() -> None:
    """Places near the last ones are answered from a table, others one by one."""
    order = SampleOrder(60_000, 16, seed=3, windows=(20_001, 20_001, 60_000))
    samples = np.arange(3 * order.blocks_of_first_epoch)
    whole = order.target_ranges(samples)
    rng = np.random.default_rng(0)
    for _ in range(300):
        some = rng.choice(samples[: rng.integers(1, len(samples))], size=rng.integers(1, 5))
        assert order.target_ranges(some) == [whole[n] for n in some]
        after = np.arange(some[0], min(some[0] + 9, len(samples)))
        assert order.target_ranges(after) == [whole[n] for n in after]
