"""The rows of samples: the ids that the model reads, and the targets that it predicts."""

from __future__ import annotations

import numpy as np

from wikillm.data.order.blocks import IGNORED, TargetRanges
from wikillm.data.order.permutation import Ints
from wikillm.data.read.corpus import Order, Tokens

PADDING = -1  # a sample index that stands for "nothing": all its labels are ignored


def sample_rows(
    tokens: Tokens, order: Order, samples: Ints
) -> tuple[Ints, Ints, list[tuple[int, int]]]:
    """Inputs and targets of these samples, each B x T, and where ranges meet within a row.

    Inputs beyond a sample's end are 0, their targets `IGNORED`. `PADDING` gives such a row.
    """
    shape = (len(samples), order.sequence_length)
    inputs = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    joins: list[tuple[int, int]] = []
    found = order.target_ranges(np.maximum(samples, 0))
    for row, (sample, ranges) in enumerate(zip(samples, found, strict=True)):
        if sample != PADDING:
            ends = _fill(tokens, inputs[row], targets[row], ranges)
            joins += [(row, column) for column in ends[:-1]]
    return inputs, targets, joins


def _fill(tokens: Tokens, inputs: Ints, targets: Ints, ranges: TargetRanges) -> list[int]:
    """Copy these targets, and the token before each. Returns where each range ends."""
    ends = [0]
    for start, stop in ranges:
        ids = tokens.read(start, stop + 1)
        ends.append(ends[-1] + stop - start)
        inputs[ends[-2] : ends[-1]] = ids[:-1]
        targets[ends[-2] : ends[-1]] = ids[1:]
    return ends[1:]
