"""Raw records to text, or to the reason why there is none."""

from __future__ import annotations

import unicodedata

import pytest

from wikillm.data.text.clean import cleaner, title_of
from wikillm.data.types import Dropped


def clean_json(payload: bytes | str, key: str = "text", offset: int = 7) -> str | Dropped:
    return cleaner("jsonl", key)(payload.encode() if isinstance(payload, str) else payload, offset)


@pytest.mark.parametrize(
    ("payload", "reason", "is_bad"),
    [
        ('{"text": "a", ', "not JSON", True),
        ('{"text": "a"} x', "not JSON", True),
        ("[" * 5000 + "]" * 5000, "not a JSON object", True),
        ('{"text": "a", "b": ' + "[" * 5000, "not JSON", True),
        ('["a"]', "not a JSON object", True),
        ('{"content": "a"}', "no key 'text'", True),
        ('{"text": null}', "'text' is not a string", True),
        ('{"text": ["a"]}', "'text' is not a string", True),
        ('{"text": 5}', "'text' is not a string", True),
        ('{"text": "\\ud83d"}', "lone surrogate", True),
        ('{"text": "a\\u0000b"}', "NUL character in the text", True),
        (b'{"text": "\xb1\xb1\xbe\xa9"}', "not UTF-8", True),
        ('{"text": " \\n\\t "}', "empty", False),
    ],
)
def test_json_that_gives_no_text_says_why(payload, reason, is_bad):
    outcome = clean_json(payload)
    assert isinstance(outcome, Dropped)
    assert (outcome.reason, outcome.is_bad) == (reason, is_bad)


def test_text_is_stripped_and_normalised_and_otherwise_left_alone():
    outcome = clean_json(
        '{"title": "T", "text": " cafe\\u0301 <|endoftext|>\\n\\n[[x]]  ", "score": NaN}'
    )
    assert isinstance(outcome, str)
    assert outcome == "café <|endoftext|>\n\n[[x]]"
    assert unicodedata.is_normalized("NFC", outcome)
    assert clean_json('{"t": "x"}', key="t") == "x"


def test_a_byte_order_mark_is_skipped_where_a_source_starts_and_nowhere_else():
    marked = '\ufeff{"text": "a"}'
    assert clean_json(marked, offset=0) == "a"
    assert isinstance(clean_json(marked), Dropped)
    bad = clean_json("\ufeff{}", offset=0)
    assert (
        isinstance(bad, Dropped) and bad.characters == 5
    )  # bytes of the record, the mark among them


def page(
    title: str = "北京",
    ns: str = "0",
    text: str = "文" * 100,
    extra: str = "",
    model: str = "wikitext",
) -> str | Dropped:
    xml = xml_of(title, ns, text, extra, model)
    return cleaner("mediawiki", "text")(xml.encode(), 7)


def xml_of(title: str, ns: str, text: str, extra: str, model: str) -> str:
    return (
        f"<page><title>{title}</title><ns>{ns}</ns>{extra}<revision><model>{model}</model>"
        f'<text xml:space="preserve">{text}</text></revision></page>'
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"ns": "14"}, "other namespace"),
        ({"extra": '<redirect title="x" />'}, "redirect"),
        ({"text": "#REDIRECT [[x]]"}, "redirect"),
        ({"text": "#重定向 [[x]]"}, "redirect"),
        ({"model": "Scribunto"}, "not wikitext"),
        ({"text": " "}, "empty"),
        ({"text": "'''短'''"}, "too short"),
        ({"text": "{{Infobox|" + "x" * 500 + "}}"}, "too short"),
        ({"text": "a &undeclared; b"}, "not well-formed XML"),
    ],
)
def test_pages_that_are_no_articles_are_dropped(arguments, reason):
    outcome = page(**arguments)
    assert isinstance(outcome, Dropped)
    assert outcome.reason == reason
    assert outcome.is_bad == (reason == "not well-formed XML")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('bytes="812" id="7"', "text is not in this dump (a stub dump)"),
        ('bytes="0"', "empty"),
        ('bytes="812" deleted="deleted"', "empty"),
        ("", "empty"),
    ],
)
def test_a_dump_without_text_is_told_from_an_empty_page(attributes, reason):
    xml = f"<page><title>A</title><ns>0</ns><revision><text {attributes} /></revision></page>"
    outcome = cleaner("mediawiki", "text")(xml.encode(), 7)
    assert isinstance(outcome, Dropped) and outcome.reason == reason


def test_an_article_starts_with_its_title():
    outcome = page(title="A &amp; B")
    assert outcome == "A & B\n\n" + "文" * 100
    assert title_of(xml_of("A &amp; B", "0", "文", "", "wikitext").encode()) == "A & B"
