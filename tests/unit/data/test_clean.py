"""Raw records to text, or to the reason why there is none."""

from __future__ import annotations

import unicodedata

import pytest

from wikillm.data.clean import clean
from wikillm.data.types import Document, Dropped, Record


def clean_json(payload: bytes | str, key: str = "text") -> Document | Dropped:
    return clean(Record(0, 7, payload.encode() if isinstance(payload, str) else payload), "jsonl", key)


@pytest.mark.parametrize(
    ("payload", "reason", "is_bad"),
    [
        ('{"text": "a", ', "not JSON", True),
        ('{"text": "a"} x', "not JSON", True),
        ("[" * 5000 + "]" * 5000, "not JSON", True),
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
    assert (outcome.reason, outcome.is_bad, outcome.offset) == (reason, is_bad, 7)


def test_text_is_stripped_and_normalised_and_otherwise_left_alone():
    outcome = clean_json('{"title": "T", "text": " cafe\\u0301 <|endoftext|>\\n\\n[[x]]  ", "score": NaN}')
    assert isinstance(outcome, Document)
    assert outcome.text == "café <|endoftext|>\n\n[[x]]"
    assert unicodedata.is_normalized("NFC", outcome.text)
    assert outcome.title == "T"
    assert clean_json('{"t": "x"}', key="t").text == "x"


def page(
    title: str = "北京", ns: str = "0", text: str = "文" * 100, extra: str = "", model: str = "wikitext"
) -> Document | Dropped:
    xml = (
        f"<page><title>{title}</title><ns>{ns}</ns>{extra}<revision><model>{model}</model>"
        f'<text xml:space="preserve">{text}</text></revision></page>'
    )
    return clean(Record(0, 7, xml.encode()), "mediawiki", "text")


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


def test_an_article_starts_with_its_title():
    outcome = page(title="A &amp; B")
    assert isinstance(outcome, Document)
    assert outcome.text == "A & B\n\n" + "文" * 100
