"""Tables with lost quotes, long cells and other delimiters: kept, counted as bad, or refused."""

from __future__ import annotations

import random

import pytest
from harness.splitting import LIMIT, in_pieces
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources.check_source import check_source
from wikillm.data.sources.sniff import sniff
from wikillm.data.sources.tables import RowSplitter, columns_of


def table(count: int, delimiter: str, quote_at: dict[int, str], columns: int = 2) -> bytes:
    """Rows of a number and a text; `quote_at`: which texts have a quote, and where."""
    rows = [delimiter.join(["id", "text", "note", "more"][:columns])]
    for i in range(count):
        text = f"the text of row {i}; it has {i * 7} words"
        quoted = {"start": f'"{text}', "end": f'{text}"', "middle": f'{text} 5" wide'}
        text = quoted.get(quote_at.get(i, ""), text)
        rows.append(delimiter.join([str(i), text, *["x"] * (columns - 2)]))
    return "\n".join([*rows, ""]).encode()


LOST = {
    "one": {200: "start"},
    "two": {200: "start", 900: "start"},
    "two, the second closes": {200: "start", 900: "end"},
    "near each other": {200: "start", 203: "start"},
    "three": {10: "start", 11: "start", 900: "start"},
    "the first row": {0: "start"},
    "the last row": {999: "start"},
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize(("delimiter", "columns"), [(",", 2), ("\t", 2), ("|", 4)])
def test_a_lost_quote_costs_its_own_row_and_no_other(tmp_path, settings, name, delimiter, columns):
    path = tmp_path / ("x.tsv" if delimiter == "\t" else "x.csv")
    path.write_bytes(table(1000, delimiter, LOST[name], columns))
    store = prepare_store(settings(path))
    funnel = store.manifest.funnel
    bad = sum(where == "start" for where in LOST[name].values())
    kept = 1000 - bad
    assert (funnel.kept_records, funnel.bad_records) == (kept, bad), funnel.table()
    assert {line.reason for line in funnel.dropped} == {"not a row of this table"}


def test_too_many_lost_quotes_end_the_build_with_their_lines(tmp_path, settings):
    path = tmp_path / "x.csv"
    path.write_bytes(table(400, ",", dict.fromkeys(range(20, 400, 40), "start")))
    with pytest.raises(DataError, match="10 of 400 records cannot be read") as caught:
        prepare_store(settings(path))
    reason = "not a row of this table: a quote in it has no partner: '20,\"the text"
    assert f"{path}:22: {reason}" in caught.value.got


def test_a_quote_in_the_middle_of_a_field_is_a_character(tmp_path, settings):
    path = tmp_path / "x.csv"
    path.write_bytes(table(300, ",", dict.fromkeys(range(0, 300, 3), "middle") | {7: "end"}))
    funnel = prepare_store(settings(path)).manifest.funnel
    assert (funnel.kept_records, funnel.bad_records) == (300, 0)


@pytest.mark.parametrize("lines", [2, 30, 990])
@pytest.mark.parametrize(
    "text", ["a line of prose, with {} commas, or two", "line {}", "", "roses are red, dear {}"]
)
def test_cells_of_many_lines_are_kept(tmp_path, settings, lines, text):
    cell = "\n".join(text.format(i) if i % 5 else f"# {i}" for i in range(lines))
    path = tmp_path / "x.csv"
    path.write_text(f'id,text\n0,"{cell}"\n' + "".join(f"{i},row {i}\n" for i in range(1, 40)))
    store = prepare_store(settings(path))
    assert store.manifest.funnel.kept_records == 40 and store.manifest.funnel.bad_records == 0
    assert store.train.text_bytes + store.val.text_bytes > len(cell.strip().encode())


@pytest.mark.parametrize("columns", ["text", "id,text"])
@pytest.mark.parametrize("size", [37, 1 << 20])
def test_a_field_that_is_too_long_is_an_error_that_names_its_lines(
    tmp_path, settings, columns, size
):
    """Of one column every line is a row: whether a quote is lost cannot be seen."""
    first = "1," if columns == "id,text" else ""
    line = "a line of a very long text without an end"
    content = f'{columns}\n{first}short\n{first}"' + f"{line}\n" * 1500 + f'"\n{first}short\n'
    content += "".join(f"{first}row {i}\n" for i in range(60))
    splitter = RowSplitter(
        columns_of(columns.encode()),
        LIMIT,
        where=lambda offset: f"x.csv:{content.count(chr(10), 0, offset) + 1}",
    )
    rows = splitter.split(in_pieces(content.encode(), size), 0)
    with pytest.raises(DataError, match="more than 1,000 lines or KiB") as caught:
        list(rows)
    assert caught.value.got == "x.csv:3: a quote opens a field there"
    assert caught.value.fix.startswith("data.max_field_lines=10000\n")
    (tmp_path / "x.csv").write_text(content)
    cfg = settings(tmp_path / "x.csv")
    with pytest.raises(DataError, match="goes on for more than"):
        prepare_store(cfg)
    store = prepare_store(cfg.model_copy(update={"max_field_lines": 10000}))
    assert store.manifest.funnel.read_records == 63


@pytest.mark.parametrize("quoted", [False, True])
def test_a_line_too_long_to_be_held_is_counted_or_refused(quoted):
    big = b'"' + b"x" * 3_000_000 + (b'\n"' if quoted else b'"')
    content = b"id,text\n1," + big + b"\n2,b\n"
    rows = RowSplitter(columns_of(b"id,text"), 1 << 20).split(in_pieces(content, 65536), 0)
    if quoted:
        with pytest.raises(DataError, match="goes on|too long to keep"):
            list(rows)
    else:
        found = [(offset, payload is None, size) for offset, payload, size in rows]
        assert found == [(0, False, 7), (8, True, 3_000_004), (3_000_013, False, 3)]


@given(st.integers(0, 2**32), st.integers(1, 200), st.sampled_from([2, 3]))
def test_rows_do_not_depend_on_pieces_or_start(seed, size, columns):
    """Rows with quotes anywhere, lost ones among them: every byte is in one row, with any cut."""
    rng = random.Random(seed)
    parts = ["a", "b", ",", ",", "\n", "\n", '"', '""', "\r\n", "字"]
    header = ",".join("abc"[:columns])
    body = "".join(rng.choice(parts) for _ in range(rng.randint(0, 120)))
    content = f"{header}\n{body}".encode()

    def cut(start: int, size: int) -> list:
        pieces = in_pieces(content[start:], size)
        splitter = RowSplitter(columns_of(header.encode()), LIMIT, max_lines=6)
        return list(splitter.split(pieces, start))

    try:
        whole = cut(0, len(content))
    except DataError:
        with pytest.raises(DataError):
            cut(0, size)
        return
    assert cut(0, size) == whole
    assert all(payload == content[offset : offset + length] for offset, payload, length in whole)
    ends = [0, *(offset + length for offset, _, length in whole)]
    starts = [*(offset for offset, _, _ in whole), len(content)]
    between = b"".join(content[low:high] for low, high in zip(ends, starts, strict=True))
    assert not between.strip(b"\r\n")  # only line ends are in no row
    for number, (offset, _, _) in enumerate(whole):
        assert cut(offset, size) == whole[number:]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "\x01"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_delimiters_are_recognised_from_the_header_and_logged(tmp_path, capsys, delimiter, name):
    (tmp_path / name).write_bytes(table(5, delimiter, {}).replace(b"; it", b" it"))
    check_source(sniff(tmp_path / name), LIMIT)
    shown = capsys.readouterr().out
    assert ("is separated by" in shown) == (delimiter != ("\t" if name == "x.tsv" else ","))


def test_names_in_quotes_do_not_decide_the_delimiter():
    assert columns_of(b'"text, with; marks",b\n').names == ("text, with; marks", "b")
