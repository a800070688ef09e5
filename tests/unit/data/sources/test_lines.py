"""Lines travel as runs; however a stream is cut, the records are those of the lines one by one."""

from __future__ import annotations

import pickle
from operator import itemgetter

import pytest
from harness.splitting import in_pieces
from hypothesis import example, given
from hypothesis import strategies as st

from wikillm.data.filters.documents import CleanJob
from wikillm.data.sources import decompress
from wikillm.data.sources.lines import split_lines, split_runs
from wikillm.data.sources.read import Cursor, RawShard, ShardReader
from wikillm.data.sources.record_batches import (
    BATCH_BYTES,
    ItemBatch,
    LineBatch,
    batches_of_items,
    batches_of_runs,
    without_blank_ends,
)
from wikillm.data.types import Item, SourceFile

BLANK = [b"", b" ", b"\r", b"\t  ", b" " * 50, b" " * 60]
LONG = [b"d" * 60, b"f" * 50, b'{"text": "' + b"e" * 60 + b'"}']
RECORDS = [b'{"text": "a"}', b'{"text": "\xe5\x8c\x97"}\r', b'{"text": "   "}', b'{"text": "bbbb"}']
BAD = [b"\xef\xbb\xbf{}", b'{"text": ', b'{"text": 5}', b'["c"]', b'{"text": "\xff"}']
LINES = st.lists(st.sampled_from([*BLANK, *LONG, *RECORDS, *BAD]), max_size=40)
LIMIT = 50


def one_by_one(content: bytes, limit: int) -> list[Item]:
    """The definition: a line that is not blank, or above the limit, is a record."""
    items: list[Item] = []
    offset = 0
    for line in content.split(b"\n"):
        if len(line) > limit:
            items.append((offset, None, len(line)))
        elif line.strip():
            items.append((offset, line, len(line)))
        offset += len(line) + 1
    return items


@given(LINES, st.booleans(), st.integers(1, 200), st.data())
@example([b""] * 5, True, 1, None)
@example([b" " * 60], False, 7, None)
def test_lines_do_not_depend_on_pieces_or_start(lines, ends, size, data):
    content = b"\n".join(lines) + b"\n" * ends
    expected = one_by_one(content, LIMIT)
    items = list(split_lines(in_pieces(content, size), 0, LIMIT))
    assert items == expected
    if items and data is not None:
        number = data.draw(st.integers(0, len(items) - 1))
        after = items[number][0] + items[number][2]
        assert list(split_lines(iter([content[after:]]), after, LIMIT)) == expected[number + 1 :]


@given(LINES, st.integers(1, 200))
def test_a_batch_of_lines_starts_and_ends_with_a_record(lines, size):
    content = b"\n".join(lines)
    found = []
    for batch in batches_of_runs(0, split_runs(in_pieces(content, size), 0, LIMIT), LIMIT):
        items = batch.items()
        assert items[0][0] == batch.start
        assert items[-1][0] + items[-1][2] == batch.end
        found += items
    assert found == one_by_one(content, LIMIT)


@given(LINES, st.integers(0, 40), st.integers(-1, 1), st.booleans())
def test_a_batch_is_cut_between_records(lines, number, beside, as_items):
    content = b"\n".join(lines)
    found = without_blank_ends(content, 100, LIMIT)
    if found is None:
        assert one_by_one(content, LIMIT) == []
        return
    whole = LineBatch(3, *found, LIMIT)
    batch = ItemBatch(3, whole.items()) if as_items else whole
    items = batch.items()
    at = max(items[number % len(items)][0] + beside, batch.start + 1)
    head, tail = batch.cut(at)
    assert head.items() == [item for item in items if item[0] < at]
    assert (tail.items() if tail else []) == [item for item in items if item[0] >= at]
    assert (head.start, (tail or head).end) == (batch.start, batch.end)
    assert pickle.loads(pickle.dumps(batch)) == batch


def what_came_of(raws: list[RawShard]) -> list[tuple]:
    """Every record of some shards, with what it became."""
    job = CleanJob(("jsonl",) * 9, "text")
    found = []
    for raw in raws:
        for batch in job.batches(raw):
            kept = zip(batch.offsets, batch.texts, strict=True)
            dropped = ((offset, (payload, why)) for offset, payload, why in batch.dropped)
            for outcome in sorted([*kept, *dropped], key=itemgetter(0)):
                found.append((raw.number, raw.start, raw.end, batch.source, outcome))
    return found


@given(
    st.lists(st.tuples(LINES, st.booleans()), min_size=1, max_size=3),
    st.integers(20, 300),
    st.sampled_from([1, 7, 64]),
)
def test_shards_do_not_depend_on_pieces(tmp_path_factory, files, range_bytes, size):
    folder = tmp_path_factory.mktemp("lines")
    sources = []
    for number, (lines, ends) in enumerate(files):
        path = folder / f"{number}.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n" * ends)
        sources.append(SourceFile(str(path), path.stat().st_size, "jsonl", "none"))
    reader = ShardReader(sources, range_bytes, LIMIT)
    whole = list(reader.read())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decompress, "PIECE_BYTES", size)
        again = list(reader.read())
        assert what_came_of(again) == what_came_of(whole)
        for raw in whole:
            again = list(reader.read(raw.start, raw.number))
            assert what_came_of(again) == what_came_of(whole[raw.number :])
    assert_shards_follow_from_the_records(sources, range_bytes, whole)


def assert_shards_follow_from_the_records(sources, range_bytes: int, raws: list[RawShard]) -> None:
    """The rule of `read`, record by record: number, cursors and records of each shard."""
    expected: list[tuple[Cursor, Cursor, list[tuple[int, Item]]]] = []
    bucket, base, end = -1, 0, Cursor()
    for index, source in enumerate(sources):
        with open(source.path, "rb") as file:
            items = one_by_one(file.read(), LIMIT)
        for item in items:
            if (where := (base + item[0]) // range_bytes) != bucket:
                expected.append((end, end, []))
                bucket = where
            end = Cursor(index, item[0] + item[2], base)
            start, _, records = expected.pop()
            expected.append((start, end, [*records, (index, item)]))
        base += items[-1][0] + items[-1][2] if items else 0
    assert [raw.number for raw in raws] == list(range(len(raws)))
    for raw, (start, end, records) in zip(raws, expected, strict=True):
        found = [(batch.source, item) for batch in raw.batches for item in batch.items()]
        assert (raw.start, raw.end, found) == (start, end, records)


def test_batches_of_items_have_about_the_same_size():
    items: list[Item] = [(at, bytes(BATCH_BYTES // 4), BATCH_BYTES // 4) for at in range(10)]
    batches = list(batches_of_items(0, items))
    assert [len(batch.items()) for batch in batches] == [4, 4, 2]
    assert [item for batch in batches for item in batch.items()] == items
