"""Which samples a step reads when windows are left out: each once, in order, in whole batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wikillm.data.read.loader import BatchShape, GlobalBatches
from wikillm.data.read.step_samples import SkipWindow, StepSamples

STEPS = 40
BATCH = 8
windows = st.lists(
    st.builds(
        lambda first, size: SkipWindow(first, first + size), st.integers(0, 300), st.integers(1, 60)
    ),
    max_size=4,
)


def by_hand(skips: list[SkipWindow], position: int, first: int) -> list[range]:
    """One step after the other: a step that would reach into a window begins behind it."""
    found = []
    for _ in range(first, STEPS):
        for skip in sorted(skips):
            if skip.stop > position and position + BATCH > skip.first:
                position = skip.stop
        found.append(range(position, position + BATCH))
        position = found[-1].stop
    return found


@given(windows, st.integers(0, 12))
def test_steps_skip_the_windows(skips: list[SkipWindow], first: int) -> None:
    position = first * BATCH
    samples = StepSamples(BATCH, first, position, skips)
    expected = by_hand(skips, position, first)
    assert [samples.of(step) for step in range(first, STEPS)] == expected
    assert samples.position(first) == position
    # What is between the steps is what was skipped, no more and no less.
    gaps = []
    for step, read in enumerate(expected, start=first):
        if read.start > position:
            gaps.append((position, read.start))
        position = read.stop
        assert samples.position(step + 1) == position
    assert [(skip.first, skip.stop) for skip in samples.skipped_before(STEPS)] == gaps


@given(windows, st.integers(1, STEPS - 1))
def test_a_resume_at_any_step_reads_the_same_samples(skips: list[SkipWindow], at: int) -> None:
    whole = StepSamples(BATCH, 0, 0, skips)
    resumed = StepSamples(BATCH, at, whole.position(at), skips)
    assert [resumed.of(step) for step in range(at, STEPS)] == [
        whole.of(step) for step in range(at, STEPS)
    ]
    before = [*whole.skipped_before(at), *resumed.skipped_before(STEPS)]
    assert [(skip.first, skip.stop) for skip in before] == [
        (skip.first, skip.stop) for skip in whole.skipped_before(STEPS)
    ]


def test_ranks_divide_the_batches_after_a_skipped_window() -> None:
    skips = [SkipWindow(16, 24), SkipWindow(30, 31)]
    read = []
    for rank in range(2):
        shape = BatchShape(micro_batch=2, accumulation=2, world_size=2, rank=rank)
        read.append(list(GlobalBatches(shape, 4, 0, 0, skips)))
    steps = [sum((r[2 * s] + r[2 * s + 1] for r in read), []) for s in range(4)]
    assert [sorted(step) for step in steps] == [
        [*range(8)], [*range(8, 16)], [*range(31, 39)], [*range(39, 47)]
    ]  # fmt: skip
