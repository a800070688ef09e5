"""The pages hold what the store holds, escaped, and need nothing from outside."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from wikillm.cli.main import main
from wikillm.data.inspect import stats as inspect
from wikillm.data.inspect.html import show_page, stats_page
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store

NASTY = "<script>alert(1)</script> & \"引号\" '北京' </span><img src=http://x.example/y.png>"


class Reader(HTMLParser):
    """Tags and text of a page; an error for a tag that closes what is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def store(tmp_path, texts, write_source, settings, monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 3000)
    return prepare_store(
        settings(
            write_source(tmp_path, "plain.jsonl", [NASTY, *texts(80), "", ""]), val_fraction=0.2
        )
    )


def check_self_contained(page: str) -> Reader:
    found = Reader(page)
    assert {tag for tag, _ in found.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "p",
            "table",
            "tr",
            "td",
            "th",
            "span",
        ),
        *("svg", "rect", "text", "line"),
    }
    for _, attributes in found.tags:
        assert not {"src", "href", "onload", "onclick"} & set(attributes)
    assert "url(" not in page and "@import" not in page
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(picture)
    return found


def test_the_page_of_a_store_tells_its_numbers(store):
    page = stats_page(store)
    found = check_self_contained(page)
    stats = inspect.stats_of(store)
    assert page.count("<svg") == 3
    for split in stats["splits"].values():
        assert f"{split['tokens']:,} tokens" in found.text
        for bin in split["histogram"]:
            assert (
                f"{bin['from']:,} to {bin['below'] - 1:,} tokens: {bin['documents']:,} documents"
                in found.text
            )
    bars = [
        attributes
        for tag, attributes in found.tags
        if tag == "rect" and attributes["class"] == "bad"
    ]
    assert len(bars) == 1  # the empty ones
    assert "empty" in found.text and "2 (2.4%)" in found.text
    assert store.manifest.fingerprint in found.text
    assert "data.val_fraction" in found.text


def test_a_document_is_shown_as_text_whatever_is_in_it(store):
    for split in ("train", "val"):
        for number in range(getattr(store, split).n_documents):
            shown = inspect.show_document(store, split, number)
            found = check_self_contained(show_page(store, shown))
            assert shown["text"] in found.text
            boxes = [a["title"] for tag, a in found.tags if tag == "span"]
            assert [int(i) for box in boxes for i in box.split()] == shown["ids"]
            if shown["text"] == NASTY:
                return
    raise AssertionError("the text that tries to become markup was not found")


def test_a_sample_has_a_table_for_each_document_in_it(store):
    shown = inspect.show_sample(store, 1, sequence_length=200, seed=1, window_shards=2)
    found = check_self_contained(show_page(store, shown))
    assert sum(tag == "table" for tag, _ in found.tags) == len(shown["parts"]) > 1
    ids = [i for part in shown["parts"] for i in store.train.read(*part["tokens"]).tolist()]
    boxed = [int(i) for tag, a in found.tags if tag == "span" for i in a["title"].split()]
    assert set(boxed) <= set(ids) and len(boxed) >= len(ids) - 8 * len(shown["parts"])


def test_the_command_writes_the_file(store, tmp_path, capsys):
    for words in (["stats"], ["show", "2"], ["show", "2", "--sample", "--sequence-length", "64"]):
        target = tmp_path / "pages" / f"{len(words)}.html"
        assert main(["data", *words, "--store", str(store.dir), "--html", str(target)]) == 0
        assert str(target) in capsys.readouterr().out
        check_self_contained(target.read_text(encoding="utf-8"))
