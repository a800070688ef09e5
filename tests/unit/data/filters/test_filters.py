"""Conversion, quality rules, overlap with evaluation examples, and hashes of texts."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.filters import characters, overlap
from wikillm.data.filters import settings as settings_module
from wikillm.data.filters.apply import Pipeline
from wikillm.data.filters.characters import grams_of, units_of
from wikillm.data.filters.quality import page_fault, text_fault
from wikillm.data.filters.settings import Filters, plan_filters
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.types import Dropped

PROSE = (
    "北京是中华人民共和国的首都，也是全国的政治与文化中心。这座城市有三千多年的建城史，曾经是六个朝代的都城。"
    "城里保存着许多古老的宫殿、园林和胡同，每年吸引大量游客前来参观。近年来，轨道交通发展得很快，郊区也建起了新的学校和医院。"
)
ENGLISH = (
    "The river rises in the hills north of the town and flows past two villages before it meets "
    "the sea. Boats once carried stone from the quarries, and a few of the old wharves still stand "
    "beside the water."
)


def through(filters: Filters, text: str, payload: bytes = b"", format: str = "jsonl"):
    return Pipeline(filters)(text, payload, format)


def against(path: Path, **keys: object) -> Filters:
    """Decontamination with the examples in a file."""
    return plan_filters(DataSection(decontaminate=(str(path),), **keys))


def is_dropped(filters: Filters, text: str) -> bool:
    return isinstance(through(filters, text), Dropped)


_UNIT = re.compile("[a-z0-9]+|[\u4e00-\u4e2f]")


@given(st.text(alphabet="abzABZ019 \n.,-\u4e00\u4e01\u4e02", max_size=60), st.integers(1, 20))
def test_units_are_words_and_hanzi_wherever_the_text_is_cut(text, piece):
    old, characters._PIECE = characters._PIECE, piece
    characters._powers.cache_clear()
    try:
        pieces = list(characters._pieces(text.casefold()))
        found = units_of(text)
    finally:
        characters._PIECE = old
        characters._powers.cache_clear()
    assert "".join(pieces) == text.casefold()
    expected = [unit for part in pieces for unit in _UNIT.findall(part)]
    assert len(found) == len(expected)
    numbers = {unit: int(units_of(unit)[0]) for unit in expected}
    assert found.tolist() == [numbers[unit] for unit in expected]
    assert len(set(numbers.values())) == len(numbers)


def test_runs_are_equal_exactly_where_their_units_are():
    units = units_of("a b c d a b c e")
    grams = grams_of(units, 3)
    assert len(grams) == 6
    assert grams[0] == grams[4] and len(set(grams.tolist())) == 5
    assert grams_of(units[:2], 3).tolist() == grams_of(units[4:6], 3).tolist()
    assert len(grams_of(units_of("，。!"), 3)) == 0


@pytest.mark.parametrize(
    ("text", "rules", "fault"),
    [
        (PROSE, "basic", None),
        (ENGLISH, "basic", None),
        (PROSE, "zh", None),
        (ENGLISH, "en", None),
        (ENGLISH, "zh", "few hanzi"),
        (PROSE, "en", "few Latin letters"),
        ("北京是首都。" * 4, "basic", "few letters in all"),
        (PROSE + "1234567890 " * 6, "basic", "many digits"),
        (PROSE + "─━│┃" * 8, "basic", "many symbols"),
        (PROSE + "1- " * 150, "basic", "few letters for its length"),
        ("。！，".join(PROSE[:110:2]), "basic", "few letters for its length"),
        ("，".join(PROSE) + "ab" * 20, "basic", "much punctuation"),
        ("\n".join([PROSE] * 2), "basic", "repeated lines"),
        (PROSE + " " + PROSE, "basic", "repeated runs of words"),
        (
            "\n".join(f"- {PROSE[i : i + 9]}" for i in range(0, 100, 9)),
            "basic",
            "hardly more than a list",
        ),
    ],
)
def test_each_quality_rule_has_its_reason(text, rules, fault):
    assert text_fault(text, rules) == fault


@pytest.mark.parametrize(
    ("wikitext", "title", "is_one"),
    [
        ("'''AA''' may refer to: ... {{disambiguation|geo}}", "AA", True),
        ("{{消歧义}}", "长城", True),
        ("{{消歧義頁|人名}}", "王伟", True),
        ("text", "水星 (消歧义)", True),
        ("{{Disambiguation needed}} {{link}}", "A", False),
        ("an article about disambiguation", "Word-sense disambiguation", False),
    ],
)
def test_disambiguation_pages_are_recognised(wikitext, title, is_one):
    assert (page_fault(wikitext, title) == "disambiguation page") == is_one
    page = (
        f"<page><title>{title}</title><revision><text>{wikitext}</text></revision></page>".encode()
    )
    outcome = through(Filters(quality="basic"), PROSE, page, "mediawiki")
    assert isinstance(outcome, Dropped) == is_one
    assert isinstance(through(Filters(quality="basic"), PROSE, page, "jsonl"), str)


def test_traditional_characters_become_simplified_but_protected_terms_stay(tmp_path):
    terms = tmp_path / "terms.txt"
    terms.write_text("# names\n臺灣大學\n臺\n")
    text = "國立臺灣大學位於臺北，電腦與網路。"
    converted = through(plan_filters(DataSection(convert="t2s")), text)
    assert converted == "国立台湾大学位于台北，电脑与网路。"
    assert (
        through(plan_filters(DataSection(convert="tw2sp")), text)
        == "国立台湾大学位于台北，电脑与网络。"
    )
    protected = plan_filters(DataSection(convert="t2s", protected_terms=str(terms)))
    assert through(protected, text) == "国立臺灣大學位于臺北，电脑与网路。"
    assert through(protected, ENGLISH) == ENGLISH
    assert protected.facts()["data.convert"]["protected_terms"] == protected.protected.sha256
    terms.write_text("變了\n")
    with pytest.raises(DataError, match="changed while"):
        Pipeline(protected)
    with pytest.raises(ConfigError, match="no effect"):
        plan_filters(DataSection(protected_terms=str(terms)))


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, settings):
    def missing(name: str) -> str:
        raise settings_module.PackageNotFoundError(name)

    monkeypatch.setattr(settings_module, "version", missing)
    with pytest.raises(ConfigError, match=r"wikillm\[wiki\]"):
        plan_filters(DataSection(convert="t2s"))
    monkeypatch.setitem(sys.modules, "rensa", None)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": PROSE}))
    with pytest.raises(ConfigError, match=r"wikillm\[wiki\]"):
        prepare_store(settings(tmp_path / "a.jsonl", dedup="minhash"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval.jsonl", json.dumps({"question": ENGLISH[:97], "choices": ["A", "B"], "answer": 1})),
        ("eval.json", json.dumps([{"id": 3, "text": ENGLISH[:97]}])),
        ("eval.csv", f'question,answer\n"{ENGLISH[:97]}",yes\n'),
        ("eval.txt", f"something else that is long enough to be looked for\n\n{ENGLISH[:97]}\n"),
    ],
)
def test_a_document_with_an_evaluation_example_is_dropped(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    filters = against(path)
    inside = through(filters, f"{PROSE}\n{ENGLISH.upper().replace(' ', '  ')}\n{PROSE}")
    assert isinstance(inside, Dropped)
    assert inside.reason == "holds an evaluation example"
    assert inside.detail.startswith(str(path))
    assert inside.characters > 2 * len(PROSE)
    assert not is_dropped(filters, PROSE)
    assert not is_dropped(filters, " ".join(ENGLISH.split()[:12]))  # one word short of a run


def test_examples_are_normalized_like_the_texts_that_are_searched(tmp_path):
    path = tmp_path / "eval.txt"
    example = "déjà vu is a café in the old part of the naïve town near Málaga"
    path.write_text(normalize("NFD", example), encoding="utf-8")
    assert is_dropped(against(path), f"{PROSE}\n{example}"), "the decomposed example was not found"


@pytest.mark.parametrize("example", ["讀萬卷書，不如行萬里路", "读万卷书，不如行万里路"])
def test_examples_are_converted_like_the_texts_that_are_searched(tmp_path, example):
    path = tmp_path / "eval.txt"
    path.write_text(example)
    filters = against(path, convert="t2s")
    assert is_dropped(filters, f"古人說：讀萬卷書，不如行萬里路。{PROSE}")


def test_the_share_of_an_example_decides_and_short_ones_are_searched_whole(tmp_path):
    words = [f"w{i}" for i in range(100)]
    path = tmp_path / "eval.txt"
    path.write_text(" ".join(words) + "\n春眠不觉晓\n太短\n")
    half = " ".join(words[:60])  # 48 of the 88 runs of 13
    assert is_dropped(against(path), half)
    assert not is_dropped(against(path, decontaminate_share=0.6), half)
    assert is_dropped(against(path, decontaminate_units=50, decontaminate_share=0.2), half)
    assert is_dropped(against(path), "古诗：春眠，不觉晓。" + PROSE)
    assert not is_dropped(against(path), "太短。" + PROSE)
    path.write_text("太短\n")
    with pytest.raises(DataError, match="no example"):
        through(against(path), PROSE)


def test_filters_are_in_the_fingerprint_and_in_the_funnel(tmp_path, settings):
    rng = random.Random(3)
    ends = ("".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(80)) for _ in range(30))
    texts = [PROSE + end for end in ends]
    source = tmp_path / "a.jsonl"
    exam = tmp_path / "exam.txt"
    exam.write_text(texts[4][-60:] + "\n")
    lines = [*texts, "短。", ENGLISH]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    plain = prepare_store(settings(source, val_fraction=0.2))
    filtered = settings(source, val_fraction=0.2, quality="zh", decontaminate=(str(exam),))
    store = prepare_store(filtered)
    assert plain.manifest.fingerprint != store.manifest.fingerprint
    assert "data.quality" not in plain.manifest.facts
    funnel = store.manifest.funnel
    assert {line.reason: (line.records, line.characters) for line in funnel.dropped} == {
        "quality: few letters in all": (1, 2),
        "quality: few hanzi": (1, len(ENGLISH)),
        "holds an evaluation example": (1, len(texts[4])),
    }
    assert funnel.kept_records == 29
    for split in (store.train, store.val):
        found = store.tokenizer().decode(split.read(0, split.n_tokens).tolist())
        assert texts[4][-60:] not in found
    exam.write_text("another example that is long enough to be looked for\n")
    assert prepare_store(filtered).manifest.fingerprint != store.manifest.fingerprint


def test_terms_are_one_file_and_indented_comments_are_none(tmp_path, settings):
    pytest.importorskip("opencc")
    folder = tmp_path / "terms"
    folder.mkdir()
    (folder / "a.txt").write_text("  # 臺灣 is a comment\n 臺北 \n", encoding="utf-8")
    one = plan_filters(settings("x", convert="t2s", protected_terms=str(folder / "a.txt")))
    assert through(one, "臺灣 臺北 # 臺灣 is") == "台湾 臺北 # 台湾 is"
    (folder / "b.txt").write_text("臺灣", encoding="utf-8")
    with pytest.raises(ConfigError, match="one file") as caught:
        plan_filters(settings("x", convert="t2s", protected_terms=str(folder)))
    assert "2 files" in caught.value.got


@pytest.mark.parametrize("entry", ["none-here.jsonl", "https://example.org/a.jsonl"])
def test_a_missing_evaluation_file_is_reported_under_its_own_key(entry, settings):
    with pytest.raises((ConfigError, DataError), match=r"data\.decontaminate") as caught:
        plan_filters(settings("x", decontaminate=(entry,)))
    assert "data.path" not in str(caught.value) and entry in caught.value.got


def test_a_misspelt_evaluation_file_suggests_the_file_of_that_name(tmp_path):
    (tmp_path / "exam.jsonl").write_text('{"q": "a"}')
    with pytest.raises(DataError) as refused:
        plan_filters(DataSection(decontaminate=(str(tmp_path / "exma.jsonl"),)))
    assert refused.value.fix == f"data.decontaminate={tmp_path / 'exam.jsonl'}"


def test_each_line_of_a_text_file_is_an_example(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "_MAX_EXAMPLE_BYTES", 500)
    path = tmp_path / "eval.txt"
    about = "about the river and the town that no other page has"
    lines = [f"question {n} {about} {n}" for n in range(50)]
    path.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    filters = against(path)
    found = [through(filters, f"{PROSE} {line.upper()}!") for line in lines]
    assert [one.detail for one in found] == [f"{path}:{n + 1}" for n in range(50)]
    path.write_text("word " * 200)
    with pytest.raises(DataError, match="too long"):
        through(against(path), PROSE)
