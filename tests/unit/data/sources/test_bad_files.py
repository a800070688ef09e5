"""A corpus with odd names, bad, duplicate or huge records: counted, or refused clearly.

What gives no text at all is in test_refused_files, single bad records in test_clean.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import DataError
from wikillm.data.filters import documents as clean_job
from wikillm.data.prepare.build import finished_shards
from wikillm.data.prepare.prepare import ensure_planned, plan_store, prepare_store
from wikillm.data.text.clean import cleaner

RECORDS = [{"text": f"document {i} of a corpus"} for i in range(300)]


def lines(records: list) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.mark.parametrize(
    "name",
    ["-rf.jsonl", "维基 百科.jsonl", "a'b\"c.jsonl", "tab\there.jsonl", "$(x);.jsonl", "~a.jsonl"],
)
def test_names_with_odd_characters(settings, name):
    cfg = settings(name)
    Path(name).write_text(lines(RECORDS))
    store = prepare_store(cfg)
    assert Path(store.manifest.sources[0].path).name == name
    assert store.manifest.funnel.kept_records == 300


@pytest.mark.parametrize("path", ["caf\udce9.jsonl", "caf\udce9"])
def test_names_that_are_not_utf8_are_refused(path):
    with pytest.raises(ValueError, match="is not UTF-8"):
        DataSection(path=(path,))


def test_the_renamed_file_of_a_folder_is_read(tmp_path, settings):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "it's caf\udce9.jsonl").write_text(lines(RECORDS))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        prepare_store(settings(folder))
    subprocess.run(["bash", "-c", caught.value.fix.removeprefix("rename it: ")], check=True)
    assert prepare_store(settings(folder)).manifest.funnel.kept_records == 300


@pytest.mark.parametrize("change", ["shorter", "longer", "other content"])
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, settings, change):
    path = tmp_path / "x.jsonl"
    content = lines(RECORDS)
    path.write_text(content)
    plan = plan_store(settings(path))
    half = content[: len(content) // 2]
    changed = {
        "shorter": half,
        "longer": content + half,
        "other content": content.replace("corpus", "CORPUS"),
    }
    path.write_text(changed[change])
    with pytest.raises(DataError, match="changed while it was read"):
        ensure_planned(plan)
    assert not finished_shards(plan.store)
    assert prepare_store(settings(path)).manifest.sources[0].size == len(changed[change])


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


def test_records_above_the_limit_are_dropped_or_bad_by_their_length(
    tmp_path, settings, monkeypatch
):
    path = tmp_path / "x.jsonl"
    path.write_text(lines([*RECORDS, {"text": "y" * 8000}]))
    funnel = prepare_store(settings(path, max_document_bytes=6000)).manifest.funnel
    assert (funnel.kept_records, funnel.bad_records, funnel.read_records) == (300, 0, 301)
    monkeypatch.setattr(clean_job, "_MAX_TEXT", 5000)
    with pytest.raises(DataError, match="1 of 301 records") as caught:
        prepare_store(settings(path, max_document_bytes=5500))
    assert caught.value.fix.startswith("data.max_document_bytes=8012\n")
    store = prepare_store(settings(path, max_document_bytes=8012))
    assert store.manifest.funnel.kept_records == 301


BESIDE = (
    '"meta": {}',
    '"meta": {"pile_set_name": "Wikipedia", "n": [1, null, {"x": true}]}',
    '"url": null',
    '"id": 17, "score": 0.5',
    '"id": "a", "id": 1, "tags": []',
    '"n": -' + "9" * 6000,
    '"n": 1e999, "m": NaN, "k": -Infinity',
    '"half": "\\ud83d"',
    '"": "", " ": [[[]]]',
    '"deep": ' + '{"a": ' * 3000 + "1" + "}" * 3000,
    '"brackets": "}]\\"{[", "deep": ' + "[" * 3000 + '"]"' + "]" * 3000,
)


def test_a_record_may_hold_anything_beside_its_text(tmp_path, settings):
    """Kinds differ from record to record too."""
    path = tmp_path / "x.jsonl"
    texts = [f"a text, {i}" for i in range(66)]
    path.write_text(
        "".join(f'{{"a": 1, {BESIDE[i % 11]}, "text": "{text}"}}\n' for i, text in enumerate(texts))
    )
    funnel = prepare_store(settings(path)).manifest.funnel
    assert (funnel.kept_records, funnel.dropped) == (66, ())
    found = [cleaner("jsonl", "text")(line, 0) for line in path.read_bytes().splitlines()]
    assert found == texts


def test_index_lines_of_a_bulk_file_are_dropped(tmp_path, settings):
    path = tmp_path / "cirrus.json"
    pairs = ([{"index": {"_id": str(i)}}, {"text": f"a text, {i}"}] for i in range(60))
    path.write_text("".join(map(lines, pairs)))
    funnel = prepare_store(settings(path)).manifest.funnel
    assert (funnel.kept_records, funnel.bad_records) == (60, 0)
    (line,) = funnel.dropped
    assert (line.reason, line.records) == ("index line of an Elasticsearch bulk file", 60)


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
