"""JSON, tables and plain text: valid input is kept exactly, damaged input is accounted for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.budget import fuzzed
from fuzz.reading import PACKED, clean, damaged, read, refused_or_read, written
from wikillm.core.errors import WikiLLMError

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40),
    st.text(
        st.sampled_from("ab 中文，\n\r\t\"\\'{}[]<>&,;|:\u2028\u0301é👩\u200d🚀\ufeff\x1b"),
        max_size=60,
    ),
    st.builds(str.__mul__, st.text('ab 中文\n"\\', min_size=1, max_size=9), st.integers(100, 3000)),
)
NUMBERS = st.integers() | st.integers(10**400, 10**401) | st.floats(allow_nan=True)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
EXTRA = st.dictionaries(
    st.one_of(st.sampled_from(["meta", "id", "title", "url", "TEXT"]), TEXTS), JSON, max_size=4
)
NAMES = st.sampled_from(["c.jsonl", "c.json", "c", "c.txt", "c.data"])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def records(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[str]]:
    """Objects with a text among other values in any order, and the texts that must be kept."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        more = {key: value for key, value in draw(EXTRA).items() if key != "text"}
        pairs = [*more.items(), ("text", draw(TEXTS))]
        made.append(dict(draw(st.permutations(pairs))))
    return made, [text for record in made if (text := clean(record["text"]))]


@st.composite
def json_lines(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    made, kept = records(draw)
    ascii_only = draw(st.booleans())
    between = draw(st.sampled_from(["\n", "\r\n", "\n\n", " \n\t"]))
    lines = between.join(json.dumps(record, ensure_ascii=ascii_only) for record in made)
    start = draw(st.sampled_from(["", "\ufeff"]))
    end = draw(st.sampled_from(["", "\n"]))
    return f"{start}{lines}{end}".encode(), kept


@st.composite
def json_arrays(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    made, kept = records(draw)
    indent = draw(st.sampled_from([None, 0, 2]))
    around = draw(st.sampled_from(["", "\n", "\ufeff"]))
    content = json.dumps(made, indent=indent, ensure_ascii=draw(st.booleans()))
    end = draw(st.sampled_from(["", "\n"]))
    return f"{around}{content}{end}".encode(), kept


@given(
    st.one_of(json_lines(), json_arrays()),
    NAMES,
    st.sampled_from(list(PACKED)),
    st.sampled_from([64, 1 << 20]),
)
@fuzzed(275)
def test_json_is_kept_exactly(
    folder: Path, made: tuple[bytes, list[str]], name: str, packed: str, range_bytes: int
) -> None:
    content, kept = made
    found = read(written(folder, name + packed, content), content, range_bytes=range_bytes)
    assert found.texts == kept
    assert {item.why.reason for item in found.dropped} <= {"empty"}


@given(
    st.lists(st.one_of(JSON, st.fixed_dictionaries({"text": JSON})), min_size=1, max_size=5).map(
        lambda values: [*values, {"text": "a text"}]
    )
)
@fuzzed(125)
def test_json_of_any_shape(folder: Path, values: list[Any]) -> None:
    content = "\n".join(map(json.dumps, values)).encode()
    try:
        found = read(written(folder, "c.jsonl", content), content)
    except WikiLLMError:
        return
    assert len(found.texts) + len(found.dropped) == len(values)


CELLS = st.text(st.sampled_from("ab 中\"',;|\t\n漢é"), max_size=12).filter(
    lambda cell: cell.count("\n") < 3
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    others = draw(st.lists(st.sampled_from(["id", "title", "url", "n"]), unique=True))
    names = draw(st.permutations(["text", *others]))
    row = st.lists(CELLS, min_size=len(names), max_size=len(names))
    rows = draw(st.lists(row, min_size=1, max_size=6))
    # The header of one column does not show the delimiter, so a comma is assumed.
    delimiter = draw(st.sampled_from([",", "\t", ";", "|"])) if len(names) > 1 else ","
    out = io.StringIO()
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([names, *rows])
    text_at = list(names).index("text")
    return out.getvalue().encode(), [text for row in rows if (text := clean(row[text_at]))]


@given(tables(), st.sampled_from([64, 1 << 20]))
@fuzzed(125)
def test_tables_are_kept_exactly(
    folder: Path, made: tuple[bytes, list[str]], range_bytes: int
) -> None:
    content, kept = made
    found = read(written(folder, "c.csv", content), content, range_bytes=range_bytes)
    assert found.texts == kept
    assert {item.why.reason for item in found.dropped} <= {"empty"}


@given(
    st.data(),
    st.one_of(
        st.tuples(st.one_of(json_lines(), json_arrays()), NAMES),
        st.tuples(tables(), st.just("c.csv")),
    ),
)
@fuzzed(300)
def test_damaged_json_and_tables_are_refused_or_accounted_for(
    folder: Path, data: st.DataObject, made: tuple[tuple[bytes, list[str]], str]
) -> None:
    content = data.draw(damaged(made[0][0]))
    refused_or_read(written(folder, made[1], content), content)


@example("a\rb\r\nc", "text")
@given(TEXTS, st.sampled_from(["text", "blocks", "lines"]))
@fuzzed(175)
def test_plain_text_is_kept_exactly(folder: Path, text: str, wanted: str) -> None:
    content = text.encode()
    try:
        found = read(written(folder, "c.txt", content), content, wanted)
    except WikiLLMError:
        assert not clean(text.removeprefix("\ufeff")) or "\r" in text
        return
    if wanted == "text":
        expected = clean(text.removeprefix("\ufeff").replace("\r\n", "\n"))
        assert found.texts == ([expected] if expected else [])
    if not found.dropped:
        kept = "".join("".join(found.texts).split())
        assert kept == "".join(clean(text.removeprefix("\ufeff")).split())


@given(
    st.binary(max_size=300),
    st.sampled_from(["c", "c.txt", "c.csv", "c.json", "c.gz", "c.bz2", "c.parquet", "c.xml"]),
)
@fuzzed(225)
def test_bytes_of_any_kind(folder: Path, content: bytes, name: str) -> None:
    (folder / name).write_bytes(content)
    refused_or_read(folder / name, content)
