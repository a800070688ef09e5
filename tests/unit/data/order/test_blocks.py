"""The order of samples: bijective, uniform, reproducible, computable anywhere without a table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.order.blocks import SampleOrder, window_ends
from wikillm.data.order.permutation import Permutation, keyed_hash

shard_sizes = st.lists(st.integers(0, 90), min_size=1, max_size=9).filter(lambda s: sum(s) >= 2)


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    """With and without windows, shuffled and front to back."""
    shards = draw(shard_sizes)
    ends = window_ends(shards, draw(st.integers(1, 4))) if draw(st.booleans()) else ()
    length, seed = draw(st.integers(2, 40)), draw(st.integers(0, 1000))
    return SampleOrder(sum(shards), length, seed, draw(st.booleans()), ends)


def targets_of(order: SampleOrder, first: int, stop: int) -> list[int]:
    found = order.target_ranges(np.arange(first, stop))
    return [target for ranges in found for start, end in ranges for target in range(start, end)]


def chi_square(counts: np.ndarray) -> float:
    expected = counts.mean()
    return float(((counts - expected) ** 2 / expected).sum())


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection_with_an_inverse(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    images = permutation(np.arange(size))
    assert sorted(images.tolist()) == list(range(size))
    for index in {0, size // 2, size - 1}:
        assert permutation.inverse(int(images[index])) == index
    with pytest.raises(IndexError, match=f"outside a permutation of {size}"):
        permutation(size)


@given(order=orders())
@settings(max_examples=120, deadline=None)
def test_every_target_exactly_once_per_epoch(order: SampleOrder) -> None:
    first = order.blocks_of_first_epoch
    borders = [0, *(first + epoch * order.blocks_per_epoch for epoch in range(3))]
    for start, stop in zip(borders, borders[1:], strict=False):
        assert sorted(targets_of(order, start, stop)) == list(range(order.targets_per_epoch))


@given(order=orders(), data=st.data())
@settings(max_examples=120, deadline=None)
def test_targets_between_counts_the_targets(order: SampleOrder, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 4 * order.blocks_of_first_epoch))
    stop = data.draw(st.integers(first, first + 3 * order.blocks_of_first_epoch))
    assert order.targets_between(first, stop) == len(targets_of(order, first, stop))


@given(shards=shard_sizes, k=st.integers(1, 4), t=st.integers(2, 40), seed=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_the_first_epoch_reads_window_after_window(
    shards: list[int], k: int, t: int, seed: int
) -> None:
    order = SampleOrder(sum(shards), t, seed, windows=window_ends(shards, k))
    sample = 0
    for window in range(0, len(shards), k):
        low = max(sum(shards[:window]), 1) - 1
        high = max(sum(shards[: window + k]), 1) - 1
        stop = sample - (low - high) // t
        assert sorted(targets_of(order, sample, stop)) == list(range(low, high))
        if stop > sample:
            assert order.end_of_window(sample) == order.end_of_window(stop - 1) == stop
        sample = stop


@given(
    shards=shard_sizes,
    k=st.integers(1, 4),
    t=st.integers(2, 40),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_later_windows_do_not_change_the_order_of_the_first(
    shards: list[int], k: int, t: int, seed: int, data: st.DataObject
) -> None:
    """Streaming relies on it: later shards change no sample of the windows before them."""
    whole = SampleOrder(sum(shards), t, seed, windows=window_ends(shards, k))
    known = shards[: k * data.draw(st.integers(1, len(shards)))]
    if sum(known) < 2:
        return
    part = SampleOrder(sum(known), t, seed, windows=window_ends(known, k))
    samples = np.arange(part.blocks_of_first_epoch)
    assert part.target_ranges(samples) == whole.target_ranges(samples)
    stop = data.draw(st.integers(0, len(samples)))
    assert part.targets_between(0, stop) == whole.targets_between(0, stop)


def test_epochs_differ_in_order_and_phase_and_seeds_differ() -> None:
    order = SampleOrder(10_008, 10, seed=1)
    first, second = order.locate(np.arange(1000))[0], order.locate(np.arange(1000, 2000))[0]
    assert (first != second).mean() > 0.99
    assert set(first) != set(second)  # cut at other places
    assert (first != SampleOrder(10_008, 10, seed=2).locate(np.arange(1000))[0]).mean() > 0.99


def test_the_order_does_not_change_between_versions() -> None:
    """Pinned: a change here silently re-orders every run that is resumed with a newer version."""
    starts, counts, *_ = SampleOrder(1003, 10, seed=3).locate([0, 1, 100, 101, 10**9])
    assert starts.tolist() == [699, 599, 539, 368, 20]
    assert counts.tolist() == [10, 10, 10, 10, 10]


def test_a_single_window_has_the_order_of_a_stream_without_windows() -> None:
    plain = SampleOrder(1003, 10, seed=3)
    one = SampleOrder(1003, 10, seed=3, windows=window_ends([500, 503], 2))
    several = SampleOrder(1003, 10, seed=3, windows=window_ends([500, 503], 1))
    assert plain.target_ranges(np.arange(400)) == one.target_ranges(np.arange(400))
    later, same = several.blocks_of_first_epoch, plain.blocks_per_epoch
    assert targets_of(several, later, later + 300) == targets_of(plain, same, same + 300)


@pytest.mark.parametrize(
    "order",
    [
        SampleOrder(15 * 10**12, 4096, seed=0),
        SampleOrder(
            8 * 10**5 * 18 * 10**6, 4096, 0, windows=window_ends(np.full(800_000, 18_000_000), 8)
        ),
    ],
    ids=["one window", "a hundred thousand windows"],
)
def test_samples_of_a_huge_stream_are_found(order: SampleOrder) -> None:
    starts, counts, *_ = order.locate([10**9, 3 * 10**9, 4 * 10**9])
    assert (counts == 4096).all() and (starts < order.targets_per_epoch).all()
    assert order.targets_between(10**9, 10**9 + 256) >= 255 * 4096


def test_streams_that_cannot_be_ordered_are_refused() -> None:
    with pytest.raises(DataError, match="fewer than two tokens"):
        SampleOrder(1, 10, seed=0)
    with pytest.raises(ValueError, match="do not cover 100 tokens"):
        SampleOrder(100, 10, seed=0, windows=(50, 99))


def test_ranges_are_the_same_for_one_sample_and_for_many() -> None:
    """Samples near the last ones are answered from a table, others one by one."""
    order = SampleOrder(60_000, 16, seed=3, windows=(20_001, 20_001, 60_000))
    samples = np.arange(3 * order.blocks_of_first_epoch)
    whole = order.target_ranges(samples)
    rng = np.random.default_rng(0)
    for _ in range(300):
        some = rng.choice(samples[: rng.integers(1, len(samples))], size=rng.integers(1, 5))
        assert order.target_ranges(some) == [whole[n] for n in some]
        after = np.arange(some[0], min(some[0] + 9, len(samples)))
        assert order.target_ranges(after) == [whole[n] for n in after]


# --- uniformity: chi-square statistics of fixed keys, so each is one number


def test_every_position_gets_every_block_about_equally_often() -> None:
    """Over (position, block) for 4,000 keys, of a permutation and of the second of three windows.

    11 x 11 cells, df = 100, 99.99 % quantile about 161.
    """
    size = 11
    plain, windowed = np.zeros((2, size, size))
    for key in range(4000):
        plain[np.arange(size), Permutation(size, keyed_hash(key, "uniform"))(np.arange(size))] += 1
        order = SampleOrder(331, 10, key, windows=(111, 221, 331))
        (ring,) = set(order._rings_of(np.arange(size, 2 * size)).tolist())
        windowed[np.arange(size), order._ring(ring).permutation(key, 10)(np.arange(size))] += 1
    assert chi_square(plain) < 161
    assert chi_square(windowed) < 161


def test_a_large_permutation_spreads_consecutive_positions_over_the_whole() -> None:
    """4,096 positions of 10^9 over 64 equal parts of the blocks; df = 63, 5 sigma about 119."""
    size = 10**9
    for first in (0, 123_456_789, size - 4096):
        images = Permutation(size, keyed_hash(first, "stretch"))(np.arange(first, first + 4096))
        assert len(np.unique(images)) == 4096
        assert chi_square(np.bincount(images * 64 // size, minlength=64)) < 119
