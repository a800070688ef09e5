"""Checksums of weights: each bit counts, the place in memory does not; the majority is right."""

from __future__ import annotations

import pytest
import torch

from wikillm.train.callbacks.weight_check import RankSums, checksum, differing_ranks

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_one_flipped_bit_changes_the_checksum(kind: torch.dtype, size: int) -> None:
    tensor = torch.arange(1, size + 1).to(kind)
    before = int(checksum(tensor))
    octets = tensor.view(torch.uint8)
    for place in range(octets.numel()):
        for bit in range(8):
            octets[place] ^= 1 << bit
            assert int(checksum(tensor)) != before
            octets[place] ^= 1 << bit
    assert int(checksum(tensor)) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_checksum_does_not_depend_on_the_place_in_memory(kind: torch.dtype) -> None:
    values = torch.arange(100).to(kind)
    buffer = torch.zeros(120, dtype=kind)
    for start in range(9):
        for size in (64, 99, 100):
            part = buffer[start : start + size]
            part.copy_(values[:size])
            assert int(checksum(part)) == int(checksum(values[:size].clone()))


def test_ranks_outside_the_majority_are_named_and_all_ranks_without_a_majority() -> None:
    good = RankSums("a", (1, 2))
    bad = RankSums("b", (1, 3))
    worse = RankSums("c", (0, 0))
    assert differing_ranks([good, bad, RankSums("d", (1, 2))]) == [1]
    assert differing_ranks([good, bad]) == [0, 1]
    assert differing_ranks([good, bad, worse]) == [0, 1, 2]
    assert differing_ranks([good, good, bad, bad]) == [0, 1, 2, 3]
    assert differing_ranks([worse, good, good, bad, good]) == [0, 3]
