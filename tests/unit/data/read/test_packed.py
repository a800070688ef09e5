"""Best-fit packing: whole documents, each target once per epoch, each window on its own."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.order.blocks import IGNORED
from wikillm.data.order.packing import PackedOrder, PackedWindow, best_fit
from wikillm.data.read.loader import DocumentMask, Samples
from wikillm.data.read.packed import FOLDER, packed_order
from wikillm.data.store.store import TokenStream

EOS = 7


@dataclass(frozen=True)
class Split:
    tokens: int
    idx_sha256: str


class Stream(TokenStream):
    """Documents of these lengths, in shards; token i is i + 1000, or EOS."""

    def __init__(self, shards: list[list[int]]) -> None:
        lengths = [length for shard in shards for length in shard]
        self.n_tokens = sum(lengths)
        self.ends = np.cumsum([0, *lengths])[1:]
        self.shards = [Shard({"train": Split(sum(shard), repr(shard))}) for shard in shards]

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.n_tokens
        ids = np.arange(start + 1000, stop + 1000)
        return np.where(np.isin(ids - 999, self.ends), EOS, ids).astype(np.uint32)

    def document_ends(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = self.n_tokens if stop is None else stop
        return self.ends[(self.ends > start) & (self.ends <= stop)]


@dataclass(frozen=True)
class Shard:
    splits: dict[str, Split]


def order_of(
    stream: Stream, length: int, folder: Path, window: int = 2, seed: int = 3
) -> PackedOrder:
    return packed_order(folder, stream, stream.shards, window, length, seed)  # type: ignore[arg-type]


def targets(order: PackedOrder, first: int, stop: int) -> list[list[int]]:
    found = order.target_ranges(np.arange(first, stop))
    return [[t for a, b in ranges for t in range(a, b)] for ranges in found]


@given(st.integers(1, 40), st.data())
@settings(max_examples=200)
def test_bins_are_those_of_best_fit_decreasing(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    rooms: list[int] = []  # item by item, looking at every bin
    for length in sorted(lengths, reverse=True):
        fitting = [(room, k) for k, room in enumerate(rooms) if room >= length]
        if not fitting:
            rooms.append(capacity)
        k = min(fitting)[1] if fitting else len(rooms) - 1
        rooms[k] -= length
    bins = best_fit(np.asarray(lengths, dtype=np.int64), capacity)
    assert set(bins.tolist()) == set(range(len(rooms)))
    filled = np.bincount(bins, weights=lengths, minlength=len(rooms)) if lengths else []
    assert sorted(filled) == sorted(capacity - room for room in rooms)


SHARDS = st.lists(st.lists(st.integers(1, 50), max_size=12), min_size=1, max_size=7)
SHARDS = SHARDS.filter(lambda s: sum(map(sum, s)) > 1)


@given(SHARDS, st.integers(1, 30), st.integers(1, 3), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_each_target_once_per_epoch_and_whole_documents(
    shards: list[list[int]], length: int, window: int, seed: int
) -> None:
    stream = Stream(shards)
    with tempfile.TemporaryDirectory() as folder:
        order = order_of(stream, length, Path(folder), window, seed)
        again = order_of(stream, length, Path(folder), window, seed)  # from the disk
    per_epoch = order.blocks_per_epoch
    found = targets(order, 0, 2 * per_epoch)
    assert targets(again, 0, 2 * per_epoch) == found
    starts = np.concatenate([[0], stream.ends])
    for epoch in found[:per_epoch], found[per_epoch:]:
        assert sorted(t for sample in epoch for t in sample) == list(range(stream.n_tokens - 1))
        assert max(map(len, epoch)) <= length
        home = {t: number for number, sample in enumerate(epoch) for t in sample}
        for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            own = [home[t] for t in range(max(0, first - 1), end - 1)]
            assert len(set(own)) == -(-len(own) // length)
    assert order.targets_between(1, per_epoch) == sum(map(len, found[1:per_epoch]))


@given(SHARDS, st.integers(2, 30), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_first_windows_have_the_same_samples(
    shards: list[list[int]], length: int, window: int
) -> None:
    stream, begun = Stream(shards), Stream(shards[: len(shards) // window * window])
    if begun.n_tokens < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, part = (order_of(s, length, Path(folder), window) for s in (stream, begun))
    count = part.blocks_of_first_epoch
    assert targets(whole, 0, count) == targets(part, 0, count)
    for sample in range(count):
        assert whole.end_of_window(sample) == part.end_of_window(sample)
        before = whole.windows_before(sample + 1)
        read = max(t for s in targets(whole, 0, sample + 1) for t in s) + 2
        assert read <= sum(sum(shard) for shard in shards[: before * window])


def test_another_epoch_has_another_order(tmp_path: Path) -> None:
    order = order_of(Stream([[5, 9, 3, 8] * 40] * 4), 16, tmp_path)
    n = order.blocks_per_epoch
    first, second, third = (targets(order, epoch * n, (epoch + 1) * n) for epoch in range(3))
    assert first != second != third and sorted(first) == sorted(second) == sorted(third)
    assert targets(order_of(Stream([[5, 9, 3, 8] * 40] * 4), 16, tmp_path, seed=4), 0, n) != first


def test_positions_restart_with_each_document_and_rows_end_with_padding(tmp_path: Path) -> None:
    stream = Stream([[6, 25, 4, 3]])
    order = order_of(stream, 10, tmp_path)
    samples = Samples(stream, order, 9, DocumentMask(EOS, with_lengths=True))
    batch = samples.batch(range(order.blocks_per_epoch))
    columns = [batch[name].tolist() for name in ("input_ids", "labels", "position_ids")]
    rows = {row[1][0]: list(row) for row in zip(*columns, strict=True)}
    # The first document and the rest of the long one; two whole parts of that; the two others.
    assert set(rows) == {1001, 1006, 1016, 1031}
    assert rows[1006][0] == [EOS, *range(1006, 1015)] and rows[1006][2] == [0, *range(9)]
    assert rows[1016] == [[*range(1015, 1025)], [*range(1016, 1026)], [*range(10)]]
    inputs, labels, positions = rows[1001]
    assert inputs == [1000, 1001, 1002, 1003, 1004, 1025, 1026, 1027, 1028, 1029]
    assert labels == [1001, 1002, 1003, 1004, EOS, 1026, 1027, 1028, 1029, EOS]
    assert positions == [0, 1, 2, 3, 4] * 2
    inputs, labels, positions = rows[1031]
    assert inputs[:7] == [EOS, 1031, 1032, 1033, EOS, 1035, 1036]
    assert labels == [1031, 1032, 1033, EOS, 1035, 1036, EOS, *[IGNORED] * 3]
    assert positions[:7] == [0, 0, 1, 2, 0, 0, 1]
    bounds = batch["cu_seq_lens_q"].tolist()
    assert bounds[0] == 0 and bounds[-1] == batch["labels"].numel()


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_packing_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    stream = Stream([[5, 9, 3, 8] * 10] * 2)
    wanted = targets(order_of(stream, 16, tmp_path), 0, 20)
    path = next((tmp_path / FOLDER).glob("*.npy"))
    content = path.read_bytes()
    if damage is None:
        other = tmp_path / "other"
        PackedWindow.of(np.array([5, 9]), True, 16).write(other)
        damage = other.read_bytes()
    path.write_bytes(damage)
    again = order_of(Stream([[5, 9, 3, 8] * 10] * 2), 16, tmp_path)  # as in another process
    assert targets(again, 0, 20) == wanted
    assert path.read_bytes() == content


def test_shards_that_were_built_again_are_packed_again(tmp_path: Path) -> None:
    """The same tokens in other documents: an old packing of as many targets must not be taken."""
    order_of(Stream([[4, 6, 10]]), 10, tmp_path)
    stream = Stream([[10, 10]])
    assert sorted(map(len, targets(order_of(stream, 10, tmp_path), 0, 2))) == [9, 10]
    assert len(list((tmp_path / FOLDER).glob("*.npy"))) == 2


def test_a_store_that_cannot_be_written_to_is_packed_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wikillm.data.workers.exclusive.os.access", lambda *_: False)
    packings: list[int] = []
    pack = PackedWindow.of
    monkeypatch.setattr(PackedWindow, "of", lambda *given: packings.append(1) or pack(*given))
    stream = Stream([[4, 6, 10]])
    assert order_of(stream, 10, tmp_path).blocks_per_epoch == 2
    assert not list(tmp_path.iterdir())
    # Packed for the plan, and not again for training.
    assert targets(order_of(stream, 10, tmp_path, seed=4), 0, 2) and packings == [1]
    assert targets(order_of(stream, 5, tmp_path), 0, 2) and packings == [1, 1]


def test_a_stream_without_a_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to predict"):
        order_of(Stream([[1], []]), 10, tmp_path)
