"""The pages hold what the store holds, escaped, and need nothing from outside."""

from __future__ import annotations

from html.parser import HTMLParser

from wikillm.cli.main import main
from wikillm.data.inspect.html import show_page, stats_page
from wikillm.data.inspect.show import show_document, show_sample
from wikillm.data.inspect.stats import stats_of

TAGS = {*("html", "head", "meta", "title", "style", "body", "h1", "h2", "p"), "span"}
TAGS |= {"table", "tr", "td", "div"}


class Reader(HTMLParser):
    """Tags and text of a page; fails for a tag that closes what is not open."""

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

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_self_contained(page: str) -> Reader:
    found = Reader(page)
    assert {tag for tag, _ in found.tags} <= TAGS
    for _, attributes in found.tags:
        assert not {"src", "href", "onload", "onclick"} & set(attributes)
    assert "url(" not in page and "@import" not in page
    return found


def ids_of(found: Reader) -> list[int]:
    boxes = [attributes["title"] or "" for tag, attributes in found.tags if tag == "span"]
    return [int(i) for box in boxes for i in box.split()]


def test_the_page_of_a_store_shows_its_numbers(store):
    found = read_self_contained(stats_page(store))
    for split in stats_of(store)["splits"].values():
        assert f"{split['tokens']:,} tokens" in found.text
        for bin in split["histogram"]:
            line = f"{bin['from']:,} to {bin['below'] - 1:,} tokens{bin['documents']:,} documents"
            assert line in found.text
    dropped = [tag for tag, attributes in found.tags if attributes.get("class") == "bad"]
    assert len(dropped) == 1  # the empty ones
    assert "empty" in found.text and "2 (1.5%)" in found.text
    assert store.manifest.fingerprint in found.text and "data.val_fraction" in found.text


def test_a_document_is_shown_as_text_whatever_it_contains(store):
    hostile = []
    for split in ("train", "val"):
        for number in range(getattr(store, split).n_documents):
            shown = show_document(store, split, number)
            hostile += [shown] if "<script>" in shown["text"] else []
    (shown,) = hostile
    found = read_self_contained(show_page(store, shown))
    assert shown["text"] in found.text
    assert ids_of(found) == shown["ids"]


def test_a_sample_has_a_table_for_each_of_its_documents(store):
    shown = show_sample(store, 1, sequence_length=200, seed=1, window_shards=2)
    found = read_self_contained(show_page(store, shown))
    assert sum(tag == "table" for tag, _ in found.tags) == len(shown["parts"]) > 1
    ids = [i for part in shown["parts"] for i in store.train.read(*part["tokens"]).tolist()]
    assert set(ids_of(found)) <= set(ids)
    assert len(ids_of(found)) >= len(ids) - 8 * len(shown["parts"])


def test_the_command_writes_the_file(store, tmp_path, capsys):
    for words in (["stats"], ["show", "2"], ["show", "2", "--sample", "--sequence-length", "64"]):
        target = tmp_path / "pages" / f"{len(words)}.html"
        assert main(["data", *words, "--store", str(store.dir), "--html", str(target)]) == 0
        assert str(target) in capsys.readouterr().out
        read_self_contained(target.read_text(encoding="utf-8"))
