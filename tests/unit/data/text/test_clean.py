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
def test_json_without_text_is_dropped_with_the_reason(payload, reason, is_bad):
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


def test_a_byte_order_mark_is_skipped_at_the_start_only():
    marked = '\ufeff{"text": "a"}'
    assert clean_json(marked, offset=0) == "a"
    assert isinstance(clean_json(marked), Dropped)
    bad = clean_json("\ufeff{}", offset=0)
    assert isinstance(bad, Dropped)
    assert bad.characters == 5  # bytes of the record with its mark


STUB = "text is not in this dump (a stub dump)"


def page(title="北京", ns="0", text="文" * 100, extra="", model="wikitext", attributes="") -> bytes:
    return (
        f"<page><title>{title}</title><ns>{ns}</ns>{extra}<revision><model>{model}</model>"
        f"<text {attributes}>{text}</text></revision></page>"
    ).encode()


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
        ({"text": "", "attributes": 'bytes="812" id="7"'}, STUB),
        ({"text": "", "attributes": 'bytes="0"'}, "empty"),
        ({"text": "", "attributes": 'bytes="812" deleted="deleted"'}, "empty"),
        ({"text": ""}, "empty"),
    ],
)
def test_pages_that_are_no_articles_are_dropped(arguments, reason):
    outcome = cleaner("mediawiki", "text")(page(**arguments), 7)
    assert isinstance(outcome, Dropped)
    assert outcome.reason == reason
    assert outcome.is_bad == (reason == "not well-formed XML")


def test_an_article_starts_with_its_title():
    content = page(title="A &amp; B")
    assert cleaner("mediawiki", "text")(content, 7) == "A & B\n\n" + "文" * 100
    assert title_of(content) == "A & B"
