"""A corpus with odd names, mixed schemas, duplicates or huge records: counted or refused clearly.

Refusals by content are in test_sources, single bad records in test_clean.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.stored import StoredCorpus


def lines(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.mark.parametrize(
    "name",
    [
        "-rf.jsonl",
        "two words.jsonl",
        "维基 百科.jsonl",
        "a'b\"c.jsonl",
        "tab\there.jsonl",
        "$(x);.jsonl",
    ],
)
def test_names_with_odd_characters(tmp_path, texts, settings, name):
    path = tmp_path / name
    path.write_text(lines([{"text": text} for text in texts(30)]), encoding="utf-8")
    store = prepare_store(settings(path))
    assert store.manifest.sources[0].path == str(path)
    assert store.manifest.funnel.kept_records == 30


def test_a_relative_name_with_a_leading_dash(texts, settings):
    cfg = settings("-rf.jsonl")
    Path("-rf.jsonl").write_text(lines([{"text": text} for text in texts(30)]))
    assert prepare_store(cfg).manifest.funnel.kept_records == 30


def test_mixed_schemas_are_counted_and_stop_the_build_beyond_the_share(tmp_path, texts, settings):
    path = tmp_path / "x.jsonl"
    records: list[dict[str, object]] = [{"text": text} for text in texts(300)]
    path.write_text(lines([*records, {"content": "other"}, {"text": 5}]))
    funnel = prepare_store(settings(path)).manifest.funnel
    assert {(line.reason, line.records) for line in funnel.dropped} == {
        ("no key 'text'", 1),
        ("'text' is not a string", 1),
    }
    path.write_text(lines([*records, *({"content": "other"} for _ in range(30))]))
    with pytest.raises(DataError, match="30 of 330 records cannot be read") as caught:
        prepare_store(settings(path))
    assert f"{path}:301: no key 'text'" in caught.value.got
    assert "data.max_bad_fraction=" in caught.value.fix


def test_short_documents_are_read_to_the_last_token(tmp_path, settings):
    path = tmp_path / "x.jsonl"
    path.write_text(lines([{"text": f"short {i}"} for i in range(500)]))
    store = prepare_store(settings(path))
    order = StoredCorpus(store, 8).order(512, 1)
    targets = [
        t
        for pieces in order.target_ranges(list(range(order.blocks_per_epoch)))
        for a, b in pieces
        for t in range(a, b)
    ]
    assert sorted(targets) == list(range(store.train.n_tokens - 1))


def test_duplicates_are_counted_and_never_on_both_sides(tmp_path, texts, settings):
    path = tmp_path / "x.jsonl"
    path.write_text(lines([{"text": text} for text in texts(40) * 5]))
    store = prepare_store(settings(path, val_fraction=0.3))
    assert store.manifest.duplicates == 160
    hashes = [
        {int(h) for index in stream.indexes() for h in index["hash"]}
        for stream in (store.train, store.val)
    ]
    assert hashes[0] and hashes[1] and not hashes[0] & hashes[1]


ARRAY = """
import json, resource, sys
from wikillm.data.sources.json_array import split_array

size = int(sys.argv[1])
item = ('  {"title": "t", "text": "' + "北京是中国的首都。\\\\n" * 40_000 + '"}').encode()
huge = 500_000_000

def pieces():
    written = 0
    yield b"[\\n"
    while written < size:
        yield item
        yield b",\\n"
        written += len(item)
    yield b'{"text": "'
    block = b"x" * (1 << 20)
    for _ in range(huge >> 20):
        yield block
    yield b'"},\\n{"text": "last"}]\\n'

kept = dropped = end = 0
last = None
for offset, payload, length in split_array(pieces(), 0, 16 << 20, "array"):
    kept += payload is not None
    dropped += payload is None
    last, end = payload or last, offset + length
assert json.loads(last) == {"text": "last"}, last
print(json.dumps([kept, dropped, end, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.large
def test_a_json_array_of_two_gigabytes_in_constant_memory():
    """Items of about 1 MB, one of 500 MB that is never held, and one after it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ARRAY), str(2_000_000_000)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    assert done.returncode == 0, done.stderr
    kept, dropped, end, peak_kib = json.loads(done.stdout)
    assert dropped == 1 and kept > 1500 and end > 2_000_000_000 + 500_000_000
    assert peak_kib < 150 * 1024, f"{peak_kib / 1024:.0f} MiB"
