"""What a dump states about itself counts: namespaces, schema, revisions, and that it is no dump."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from harness.splitting import in_pieces

from wikillm.cli.main import main
from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import plan_store, prepare_store
from wikillm.data.sources.mediawiki import read_site, split_pages
from wikillm.data.sources.sniff import sniff
from wikillm.data.store.store import Store
from wikillm.data.text import clean
from wikillm.data.text.clean import cleaner
from wikillm.data.types import Dropped, WikiSite

SWEDISH = {-2: "Media", 0: "", 1: "Diskussion", 2: "Användare", 4: "Wikipedia"}
SWEDISH |= {6: "Fil", 10: "Mall", 14: "Kategori"}
PROSE = "Staden är gammal och ligger vid en flod som rinner genom landet till havet, sida {}."


def siteinfo(names: dict[int, str], language: str = "sv") -> str:
    listed = "".join(
        f'<namespace key="{key}" case="first-letter"' + (f">{name}</namespace>" if name else " />")
        for key, name in names.items()
    )
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" '
        f'xml:lang="{language}">\n<siteinfo><sitename>Wikipedia &amp; Co</sitename>'
        f"<dbname>{language}wiki</dbname><base>https://{language}.wikipedia.org/wiki/Main</base>"
        f"<namespaces>{listed}</namespaces></siteinfo>\n"
    )


def revision(number: int, text: str, time: str = "") -> str:
    stamp = f"<timestamp>{time}</timestamp>" if time else ""
    body = f'<text xml:space="preserve">{escape(text)}</text>'
    return f"<revision><id>{number}</id>{stamp}{body}</revision>"


def page(title: str, revisions: str, ns: int | None = 0) -> str:
    space = "" if ns is None else f"<ns>{ns}</ns>"
    return f"<page><title>{escape(title)}</title>{space}<id>7</id>{revisions}</page>\n"


def texts_of(store: Store) -> list[str]:
    whole = "".join(
        store.tokenizer().decode(s.read(0, s.n_tokens).tolist()) for s in (store.train, store.val)
    )
    return [text for text in whole.split("<|endoftext|>") if text]


def swedish_pages() -> list[str]:
    box = "[[Fil:Stad.jpg|miniatyr|250px|En bild]]\n[[kategori:Städer]]\n"
    return [page(f"Stad {i}", revision(i, f"{box}{PROSE.format(i)}")) for i in range(60)]


def written(folder: Path, form: str, head: str, pages: list[str]) -> Path:
    fives = ("".join(pages[at : at + 5]) for at in range(0, len(pages), 5))
    parts = [head, *fives, "</mediawiki>\n"]
    path = folder / f"wiki.xml{form}"
    if form == ".bz2":  # a stream for each part, as in multistream dumps
        path.write_bytes(b"".join(bz2.compress(part.encode()) for part in parts))
    else:
        content = "".join(parts).encode()
        path.write_bytes(gzip.compress(content) if form == ".gz" else content)
    return path


@pytest.mark.parametrize(("form", "workers"), [("", 1), (".gz", 2), (".bz2", 2)])
def test_every_worker_gets_the_namespaces_of_the_dump(tmp_path, settings, form, workers):
    path = written(tmp_path, form, siteinfo(SWEDISH), swedish_pages())
    store = prepare_store(settings(path, workers=workers, shard_bytes=3000))
    assert len(store.manifest.shards) > 3  # most shards begin in the middle of the dump
    found = texts_of(store)
    assert sorted(found) == sorted(f"Stad {i}\n\n{PROSE.format(i)}" for i in range(60))


def test_each_dump_is_read_with_its_own_namespaces(tmp_path, settings):
    finnish = {0: "", 6: "Tiedosto", 14: "Luokka"}
    wiki = "[[Tiedosto:A.jpg|pienoiskuva]][[Luokka:B]][[Fil:C.jpg|teksti]] " + PROSE.format(1)
    (tmp_path / "sv").mkdir()
    (tmp_path / "fi").mkdir()
    sv = written(tmp_path / "sv", "", siteinfo(SWEDISH), swedish_pages())
    kaupunki = page("Kaupunki", revision(1, wiki))
    fi = written(tmp_path / "fi", "", siteinfo(finnish, "fi"), [kaupunki])
    plan = plan_store(settings(sv, fi))
    assert [site.language for site in plan.clean_job.sites] == ["sv", "fi"]
    found = texts_of(prepare_store(settings(sv, fi)))
    assert f"Kaupunki\n\nteksti {PROSE.format(1)}" in found
    assert all("miniatyr" not in text and "ategori" not in text for text in found)


def test_siteinfo_of_a_dump(tmp_path):
    site = sniff(written(tmp_path, ".bz2", siteinfo(SWEDISH), swedish_pages())).site
    assert (site.name, site.dbname, site.language) == ("Wikipedia & Co", "svwiki", "sv")
    assert site.base == "https://sv.wikipedia.org/wiki/Main"
    assert dict(site.namespaces) == {key: name for key, name in SWEDISH.items() if name}
    aliases = "<namespace key='6'>Fil</namespace><namespace case='x' key=\"6\">Bild_2</namespace>"
    head = f"<mediawiki><siteinfo><namespaces>{aliases}<page><namespace key='1'>no</namespace>"
    assert read_site(head).namespaces == ((6, "Fil"), (6, "Bild_2"))
    assert read_site("<mediawiki><siteinfo><sitename>cut o") == WikiSite()


def test_new_wikitext_rules_give_new_stores_of_dumps_only(tmp_path, settings, monkeypatch):
    dump = written(tmp_path, "", siteinfo(SWEDISH), swedish_pages())
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(f'{{"text": "{PROSE.format(i)}"}}\n' for i in range(60)))
    before = [plan_store(settings(path)).fingerprint for path in (dump, lines)]
    monkeypatch.setattr(clean, "_WIKITEXT_VERSION", 9)
    after = [plan_store(settings(path)).fingerprint for path in (dump, lines)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]


def test_a_dump_without_articles_is_refused_with_a_fix_for_dumps(tmp_path, settings):
    logs = "<logitem><id>1</id><params>text</params></logitem>"
    path = written(tmp_path, "", siteinfo(SWEDISH), [logs])
    with pytest.raises(DataError, match="Nothing is left") as caught:
        prepare_store(settings(path))
    assert "pages-articles" in caught.value.fix and "text_key" not in caught.value.fix


OTHERS = ["Template:甲", "Wikipedia:互助", "User talk:某", "user_talk:某", "Talk:甲", "MediaWiki:X"]
OTHERS += ["用户:某", "模板讨论:甲", "Mall:X", "Diskussion:X", "File:x.jpg", "文件:x.jpg"]
OTHERS += ["Category talk:x", "Special:X"]
ARTICLES = ["Re:從零", "CSI:甲", "甲", "Users: 乙", ":甲", "2:0", "Portal: Still Alive"]


@pytest.mark.parametrize("title", [*OTHERS, *ARTICLES])
def test_a_dump_without_ns_is_sorted_by_title(title):
    is_article = title in ARTICLES
    site = WikiSite(namespaces=tuple(SWEDISH.items()))
    clean = cleaner("mediawiki", "text", site)
    found = clean(page(title, revision(1, "文" * 80), ns=None).encode(), 7)
    assert isinstance(found, str) == is_article
    assert is_article or found.reason == "other namespace"
    numbered = clean(page(title, revision(1, "文" * 80), ns=0).encode(), 7)
    assert isinstance(numbered, str)  # the number counts where there is one


REDIRECTS = ["#REDIRECT", "#redirect ", "# Redirect:", "#重定向", "#WEITERLEITUNG"]
REDIRECTS += ["#перенаправление", "\n#転送", "#YÖNLENDİRME", "#अनुप्रेषित", "#تغییر_مسیر"]


@pytest.mark.parametrize("mark", REDIRECTS)
def test_redirects_in_exports_without_a_redirect_element(mark):
    clean = cleaner("mediawiki", "text")
    found = clean(page("A", revision(1, f"{mark}[[B]]{'文' * 80}"), ns=None).encode(), 7)
    assert isinstance(found, Dropped) and found.reason == "redirect"
    item = clean(page("A", revision(1, f"# 条目[[B]]{'文' * 80}"), ns=None).encode(), 7)
    assert isinstance(item, str)


FIRST, SECOND, THIRD = (f"{year}-01-01T00:00:00Z" for year in (2001, 2002, 2009))
HISTORIES = {
    "oldest first": [(1, FIRST), (2, SECOND), (3, THIRD)],
    "newest first": [(3, THIRD), (2, SECOND), (1, FIRST)],
    "in the middle": [(2, SECOND), (3, THIRD), (1, FIRST)],
    "same second": [(1, THIRD), (3, THIRD)],
    "same second, newest first": [(3, THIRD), (1, THIRD)],
    "no times": [(1, ""), (2, ""), (3, "")],
    "no times, newest first": [(3, ""), (2, ""), (1, "")],
}


@pytest.mark.parametrize("order", HISTORIES)
@pytest.mark.parametrize("size", [1, 50, 1 << 20])
def test_a_history_dump_gives_the_newest_revision(order, size):
    revisions = [revision(n, f"第{n}版。" + str(n) * 900, time) for n, time in HISTORIES[order]]
    history = page("甲", "".join(revisions))
    pages = [page("乙", revision(9, "文")), history, page("丙", revision(8, "文"))]
    content = f"{siteinfo(SWEDISH)}{''.join(pages)}</mediawiki>".encode()
    limit = 1600  # bytes: less than two revisions
    items = list(split_pages(in_pieces(content, size), 0, limit, "x"))
    newest = page("甲", revision(3, "第3版。" + "3" * 900, dict(HISTORIES[order])[3])).rstrip()
    assert [item[1] and item[1].decode() for item in items][1] == newest
    assert [content[at : at + length].decode() for at, _, length in items][1] == history.rstrip()
    assert "第3版" in str(cleaner("mediawiki", "text")(history.encode(), 7))


def test_a_history_dump_keeps_the_revision_number_and_drops_older_text(tmp_path, settings, capsys):
    pages = []
    for i in range(30):
        old = revision(100 + i, "{{消歧义}} 旧" * 9, FIRST)
        text = " ".join(PROSE.format(f"新{i}-{j}") for j in range(4))
        pages.append(page(f"条目{i}", old + revision(500 + i, text, THIRD)))
    path = written(tmp_path, ".bz2", siteinfo(SWEDISH, "zh"), pages)
    store = prepare_store(settings(path, quality="basic"))
    assert len(texts_of(store)) == 30
    assert not any("旧" in text for text in texts_of(store))
    titles = (store.dir / "attribution" / "00000.tsv").read_text().splitlines()
    assert {line.split("\t")[3] for line in titles} == {str(500 + i) for i in range(30)}


INDEX = "".join(f"{600 + 40_000 * (i // 3)}:{10 + i}:条目: {i}\n" for i in range(90))


@pytest.mark.parametrize("form", ["", ".bz2"])
@pytest.mark.parametrize(
    ("part", "wanted"),
    [(".txt", "auto"), ("3.txt-p1p42", "auto"), (".txt", "text"), (".txt", "blocks")],
)
def test_the_index_of_a_multistream_dump_is_refused(tmp_path, form, part, wanted):
    path = tmp_path / f"zhwiki-20261101-pages-articles-multistream-index{part}{form}"
    path.write_bytes(bz2.compress(INDEX.encode()) if form else INDEX.encode())
    with pytest.raises(DataError, match="index of a multistream dump"):
        sniff(path, wanted)
    assert main(["prepare", "--wiki", str(path)]) == 4


@pytest.mark.parametrize(
    "text",
    [
        "12:30:45 开始\n12:31:02 结束\n",
        "600:1:a\n500:2:b\n",
        "一行文字\n600:1:a\n",
        "600:1\n601:2\n",
        "2026:11:27 a\n2026:11:28 b\n正文",
    ],
)
def test_texts_that_only_look_like_an_index_are_read(tmp_path, text):
    path = tmp_path / "log.txt"
    path.write_text(text * 3)
    assert sniff(path).format == "text"
