"""MediaWiki exports, wikitext and Parquet: valid files are kept, damaged ones accounted for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.budget import fuzzed
from fuzz.reading import clean, damaged, read, refused_or_read, written
from wikillm.data.text.clean import cleaner

MARKS = [
    *("[[", "]]", "[[File:a.jpg|thumb|", "[[a|b]]", "{{", "}}", "{{a|b=c}}", "{{{1|x}}}"),
    *("{|", "|}", "|-", "| ", "! ", "||", "'''", "''", "== ", " ==", "<ref>", "</ref>"),
    *("<ref name=a />", "<nowiki>", "</nowiki>", "<math>", "</math>", "<!--", "-->"),
    *("<pre>", "</pre>", "<syntaxhighlight lang=c>", "</syntaxhighlight>", "<br>"),
    *("<div class='a'>", "</div>", "-{", "}-", "-{zh-hans:a;zh-hant:b}-"),
    *("http://a.org/?b=c ", "[http://a.org b]", "* ", "# ", ": ", "----", "&nbsp;"),
    *("&amp;", "&lt;", "&#160;", "&#xD800;", "&#99999999;", "__TOC__", "#REDIRECT [[a]]"),
    *("10<sup>8</sup>", "\n", "\n\n", " ", "\t", "|", "]", "[", "{", "}", "<", ">", "~~~~"),
    *("\u200e",),
]
WIKITEXT = st.lists(
    st.one_of(
        st.sampled_from(MARKS),
        st.sampled_from(["word ", "中文", "。", "Ä", "1", "a.b"]),
        st.text(max_size=3),
    ),
    max_size=60,
).map("".join)
BALANCED = [
    *("{{box|a=[[b]]|c={{d|e}}}}", "[[File:x.jpg|thumb|a [[b]] c]]"),
    *("<!-- a {{ b [[ c -->", "{|\n| a || b\n|-\n| c\n|}", "<ref>a [[b]]</ref>"),
    *("'''bold''' ''italic''", "[[Target|shown]]", "<math>a_{b} }} [[</math>"),
    *("<nowiki>[[ {{ </nowiki>", "[http://a.org shown]", "-{zh-hans:简;zh-hant:繁}-"),
    *("== Heading ==", "* item", "&nbsp;"),
]
IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def page(title: str, ns: str, text: str) -> str:
    title = escape(IN_XML.sub("", title))
    body = f'<text xml:space="preserve">{escape(IN_XML.sub("", text))}</text>'
    revision = f"<revision><id>2</id>{body}</revision>"
    return f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{revision}</page>\n"


@st.composite
def exports(draw: st.DrawFn) -> tuple[bytes, int]:
    made = st.tuples(st.text(max_size=8), st.sampled_from(["0", "1", "10", ""]), WIKITEXT)
    pages = draw(st.lists(made, min_size=1, max_size=4))
    schema = "http://www.mediawiki.org/xml/export-0.11/"
    head = f'<mediawiki xmlns="{schema}" version="0.11" xml:lang="zh">\n'
    siteinfo = "<siteinfo><sitename>W</sitename><dbname>zhwiki</dbname></siteinfo>\n"
    site = draw(st.sampled_from(["", siteinfo]))
    body = head + site + "".join(page(*made) for made in pages) + "</mediawiki>\n"
    return body.encode(), len(pages)


@given(exports(), st.sampled_from([256, 1 << 20]))
@fuzzed(60)
def test_each_page_is_kept_or_dropped_with_a_reason(
    folder: Path, made: tuple[bytes, int], range_bytes: int
) -> None:
    content, pages = made
    found = read(written(folder, "dump.xml", content), content, range_bytes=range_bytes)
    assert len(found.texts) + len(found.dropped) == pages
    assert not any(item.why.is_bad for item in found.dropped), found.dropped


@given(st.data(), exports())
@fuzzed(200)
def test_damaged_exports_are_refused_or_accounted_for(
    folder: Path, data: st.DataObject, made: tuple[bytes, int]
) -> None:
    content = data.draw(damaged(made[0]))
    refused_or_read(written(folder, "dump.xml", content), content)


@given(st.text(max_size=10), WIKITEXT)
@fuzzed(300)
def test_wikitext_of_any_kind(title: str, text: str) -> None:
    payload = page(title, "0", text + " the end" * 20).encode()
    found = cleaner("mediawiki", "text")(payload, 0)
    assert found if isinstance(found, str) else found.reason


@given(
    st.lists(st.sampled_from(BALANCED), min_size=1, max_size=8), st.randoms(use_true_random=False)
)
@fuzzed(150)
def test_words_between_markup_are_kept(pieces: list[str], random: Any) -> None:
    """Plain words in separate paragraphs are kept, whatever complete markup surrounds them."""
    words = [f"Word{n}kept" for n in range(len(pieces) + 1)]
    lines = [
        f"{words[0]} is plain text of a paragraph that is long enough to be kept as an article."
    ]
    for word, piece in zip(words[1:], pieces, strict=True):
        lines += [piece, "", f"{word} follows."]
    found = cleaner("mediawiki", "text")(page("T", "0", "\n".join(lines)).encode(), 0)
    assert isinstance(found, str), found
    assert [word for word in words if word not in found] == []


CELLS = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20),
)


COLUMNS = st.lists(CELLS, min_size=1, max_size=80)


def as_parquet(path: Path, texts: list[str | None], kind: str, row_group: int) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    column: Any = pa.array(texts, pa.large_string() if kind == "large" else pa.string())
    if kind == "dictionary":
        column = column.dictionary_encode()
    table = pa.table({"id": list(range(len(texts))), "text": column})
    parquet.write_table(
        table, path, row_group_size=row_group, compression="zstd" if kind == "large" else "snappy"
    )
    return path.read_bytes()


@given(COLUMNS, st.sampled_from(["plain", "large", "dictionary"]), st.sampled_from([1, 7, 1000]))
@fuzzed(30)
def test_each_row_of_parquet_is_kept(
    folder: Path, texts: list[str | None], kind: str, row_group: int
) -> None:
    path = folder / "c.parquet"
    as_parquet(path, texts, kind, row_group)
    found = read(path, b"", range_bytes=128)
    assert found.texts == [text for cell in texts if (text := clean(cell or ""))]
    assert len(found.texts) + len(found.dropped) == len(texts)
    assert {item.why.reason for item in found.dropped} <= {"empty"}


@given(st.data(), COLUMNS, st.sampled_from(["plain", "dictionary"]))
@fuzzed(80)
def test_damaged_parquet_is_refused_or_read(
    folder: Path, data: st.DataObject, texts: list[str | None], kind: str
) -> None:
    path = folder / "d.parquet"
    content = data.draw(damaged(as_parquet(path, texts, kind, 7), most=2))
    path.write_bytes(content)
    refused_or_read(path, content)
