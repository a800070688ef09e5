"""Unreadable text is bounded in bytes and in records; JSON may hold anything beside its text."""

from __future__ import annotations

import json

import pytest

from wikillm.core.errors import DataError
from wikillm.data.filters import documents as clean_job
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.text.clean import cleaner

RECORDS = [{"text": f"document {i} of a corpus"} for i in range(300)]


def lines(records: list) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_few_bad_records_that_are_most_of_the_text_end_the_build(tmp_path, settings):
    path = tmp_path / "x.jsonl"
    path.write_text(lines(RECORDS) + '{"text": "' + "x" * 30_000 + "\n")
    message = r"1 of 301 records cannot be read, and they are 7\d.\d% of the bytes"
    with pytest.raises(DataError, match=message) as caught:
        prepare_store(settings(path))
    assert f"{path}:301: not JSON" in caught.value.got
    share = float(caught.value.fix.partition("data.max_bad_fraction=")[2])
    assert 0.7 < share < 0.8
    assert prepare_store(settings(path, max_bad_fraction=share)).manifest.funnel.kept_records == 300


def test_a_lost_quote_in_an_array_is_an_error(tmp_path, settings):
    """What follows is text up to the next quote: few records, and most of the bytes."""
    content = json.dumps(RECORDS)
    cut = content.index("document 100")
    path = tmp_path / "x.json"
    rest = content[cut:-1].replace('"}, {"', '\\"}, {\\"', 150)
    path.write_text(f'{content[: cut - 1]}{rest}"}}]')
    with pytest.raises(DataError, match=r"cannot be read|cut off|after the end"):
        prepare_store(settings(path))


def test_records_longer_than_any_text_count_as_bad(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(clean_job, "_LONGEST_TEXT", 5000)
    path = tmp_path / "x.jsonl"
    path.write_text(lines([*RECORDS, {"text": "y" * 8000}]))
    with pytest.raises(DataError, match="1 of 301 records") as caught:
        prepare_store(settings(path, max_document_bytes=6000))
    assert caught.value.fix.startswith("data.max_document_bytes=8012\n")
    store = prepare_store(settings(path, max_document_bytes=8012))
    assert store.manifest.funnel.kept_records == 301


def test_records_above_a_chosen_limit_are_dropped_and_counted(tmp_path, settings):
    path = tmp_path / "x.jsonl"
    path.write_text(lines([*RECORDS, {"text": "y" * 8000}]))
    funnel = prepare_store(settings(path, max_document_bytes=4000)).manifest.funnel
    assert (funnel.kept_records, funnel.bad_records, funnel.read_records) == (300, 0, 301)


DEEP = '{"a": ' * 3000 + "1" + "}" * 3000


@pytest.mark.parametrize(
    "beside",
    [
        '"meta": {}',
        '"meta": {"pile_set_name": "Wikipedia", "n": [1, null, {"x": true}]}',
        '"url": null',
        '"id": 17, "score": 0.5',
        '"id": "a", "id": 1, "tags": []',
        '"n": ' + "9" * 30,
        '"n": -' + "9" * 6000,
        '"n": 1e999, "m": NaN, "k": -Infinity',
        '"half": "\\ud83d"',
        '"": "", " ": [[[]]]',
        f'"deep": {DEEP}',
        '"brackets": "}]\\"{[", "deep": ' + "[" * 3000 + '"]"' + "]" * 3000,
    ],
)
def test_a_record_may_hold_anything_beside_its_text(tmp_path, settings, beside):
    path = tmp_path / "x.jsonl"
    texts = [f"a text, {i}" for i in range(60)]
    path.write_text("".join(f'{{"first": 1, {beside}, "text": "{text}"}}\n' for text in texts))
    store = prepare_store(settings(path))
    assert (store.manifest.funnel.kept_records, store.manifest.funnel.dropped) == (60, ())
    line = path.read_bytes().splitlines()[7]
    assert cleaner("jsonl", "text")(line, 0) == texts[7]


@pytest.mark.parametrize("write", [lines, json.dumps])
def test_kinds_may_differ_from_record_to_record(tmp_path, settings, write):
    values = [None, {}, [], "u", 1, 2.5, True, {"a": {"b": None}}, "9" * 20, [{}], 2**80]
    path = tmp_path / "x.jsonl"
    path.write_text(write([{"x": values[i % 11], "text": f"a text, {i}"} for i in range(66)]))
    assert prepare_store(settings(path)).manifest.funnel.kept_records == 66


def test_index_lines_of_a_bulk_file_are_dropped(tmp_path, settings):
    path = tmp_path / "cirrus.json"
    pairs = ([{"index": {"_id": str(i)}}, {"text": f"a text, {i}"}] for i in range(60))
    path.write_text("".join(map(lines, pairs)))
    funnel = prepare_store(settings(path)).manifest.funnel
    assert (funnel.kept_records, funnel.bad_records) == (60, 0)
    (line,) = funnel.dropped
    assert (line.reason, line.records) == ("index line of an Elasticsearch bulk file", 60)
