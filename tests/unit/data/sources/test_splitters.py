"""Cutting records out of a stream: arrays, pages, rows, blocks, files (lines: test_lines)."""

from __future__ import annotations

import csv
import io
import json
from functools import partial

import pytest
from harness.splitting import LIMIT, in_pieces, whole_and_resumable
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.sources.json_array import split_array
from wikillm.data.sources.lines import split_blocks, split_lines, split_whole
from wikillm.data.sources.mediawiki import split_pages
from wikillm.data.sources.tables import Columns, RowSplitter, columns_of, parse_row, row_and_header


def split_rows(pieces, start: int, limit: int, columns: Columns):
    return RowSplitter(columns, limit).split(pieces, start)


ARRAY = partial(split_array, name="x")
PAGES = partial(split_pages, name="x")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.text(st.sampled_from('ab,"\n \t;字'), max_size=8)
SIZES = st.integers(1, 9)


@given(st.lists(JSON_VALUES, max_size=6), SIZES, st.booleans(), st.sampled_from([None, 1]))
def test_array_items_come_out_whole(values, size, ascii_only, indent):
    content = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    found = whole_and_resumable(partial(ARRAY, limit=LIMIT), content, size)
    assert [json.loads(payload) for payload in found] == values


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5), SIZES)
def test_pages_come_out_whole(texts, size):
    pages = [b"<page><x>" + text.replace("<", "&lt;").encode() + b"</x></page>" for text in texts]
    content = b"<mediawiki>\n<siteinfo/>" + b"\n ".join(pages) + b"</mediawiki>"
    found = list(split_pages(in_pieces(content, size), 0, LIMIT, "x"))
    assert [payload for _, payload, _ in found] == pages


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=5), SIZES, st.sampled_from(",\t;"))
def test_rows_come_out_whole(values, size, delimiter):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([["first", "text"], *values])
    content = out.getvalue().encode()
    columns = columns_of(content.split(b"\n")[0])
    assert columns == Columns(("first", "text"), delimiter)
    split = partial(split_rows, limit=LIMIT, columns=columns)
    header, *rows = whole_and_resumable(split, content, size)
    parsed = [tuple(parse_row(row_and_header(row, header)).values()) for row in rows]
    assert parsed == values


@given(st.text(st.sampled_from("ab \n\r\t字"), max_size=40), SIZES)
def test_blocks_are_between_blank_lines(text, size):
    content = text.encode()
    wanted: list[list[bytes]] = [[]]
    for line in content.split(b"\n"):
        if line.strip():
            wanted[-1].append(line)
        else:
            wanted.append([])
    found = whole_and_resumable(partial(split_blocks, limit=LIMIT), content, size)
    assert found == [b"\n".join(block) for block in wanted if block]


ROWS = partial(split_rows, columns=columns_of(b"a,b"))
BIG = ['{"text": "a"}', json.dumps({"text": "大" * 3000}), '{"text": "b"}']
ABOVE_THE_LIMIT = {
    "lines": (split_lines, "\n".join(BIG), [13, None, 13]),
    "array": (ARRAY, f"[{','.join(BIG)}]", [13, None, 13]),
    "pages": (PAGES, f"<page>{'</page><page>'.join(BIG)}</page></mediawiki>", [26, None, 26]),
    "rows": (ROWS, 'a,b\n1,"' + 'x""\n' * 100 + '"\n2,c\n', [3, None, 3]),
    "blocks": (split_blocks, "one\n\n" + "long\n" * 40 + "\n\ntwo", [3, None, 3]),
    "whole": (split_whole, "long\n" * 40, [None]),
}  # fmt: skip


@pytest.mark.parametrize("name", ABOVE_THE_LIMIT)
@pytest.mark.parametrize("size", [3, 64, 1 << 20])
def test_a_record_above_the_limit_is_counted_and_never_held(name, size):
    split, text, wanted = ABOVE_THE_LIMIT[name]
    content = text.encode()
    items = list(split(in_pieces(content, size), 0, limit=50))
    assert [payload and len(payload) for _, payload, _ in items] == wanted
    whole = list(split(in_pieces(content, size), 0, limit=LIMIT))
    assert [(offset, length) for offset, _, length in items] == [
        (offset, len(payload or b"")) for offset, payload, _ in whole
    ]


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        (ARRAY, b'[{"text": "a"}, {"te', "cut off"),
        (ARRAY, b'[{"text": "a"}] {"text": "b"}', "after the end"),
        (ARRAY, b'{"text": "a"}', "not a JSON array"),
        (PAGES, b"<mediawiki><page>text", "cut off"),
        (PAGES, b"<mediawiki><page>text</page>", "cut off"),
        (PAGES, b'<!DOCTYPE x [<!ENTITY a "aaaa">]><mediawiki><page>&a;</page>', "document type"),
    ],
)
def test_damaged_files_are_refused(split, content, message):
    with pytest.raises(DataError, match=message):
        list(split(in_pieces(content, 5), 0, limit=LIMIT))


def test_a_bad_item_of_an_array_leaves_the_others_whole():
    items = [b'{"text": nope}', b"17", b"}x", b'"s"', b'{"text": "b"}']
    content = b"[" + b", ".join(items) + b"]"
    assert [payload for _, payload, _ in split_array(iter([content]), 0, LIMIT, "x")] == items


def test_a_whole_file_is_read_from_its_beginning_only():
    assert list(split_whole(iter([b"a\n", b"b"]), 0, LIMIT)) == [(0, b"a\nb", 3)]
    assert list(split_whole(iter([]), 3, LIMIT)) == []
