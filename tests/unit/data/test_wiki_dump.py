"""`prepare --wiki` on a multistream dump, its attribution, and bz2 streams read in threads."""

from __future__ import annotations

import bz2
import hashlib
import json
import random
from functools import partial
from pathlib import Path

import pytest
from harness.file_digests import digests

from wikillm.cli.main import main
from wikillm.cli.prepare import wiki_settings
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.filters import settings as filter_settings
from wikillm.data.sources import decompress, decompress_bz2
from wikillm.data.sources.decompress import pieces
from wikillm.data.store.store import Store
from wikillm.data.types import SourceFile

SUBJECTS = ["這座城市", "該河流", "這位作家", "那所學校", "這部電影"]
VERBS = ["位於", "建立於", "成長在", "聞名於", "起源於", "發展自"]
PLACES = ["北京", "臺北", "廣東省東部", "長江沿岸", "邊境地區", "亞洲各國"]


def prose(rng: random.Random, sentences: int = 14) -> str:
    def word() -> str:
        return "".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(rng.randint(2, 5)))

    parts = (
        f"{rng.choice(SUBJECTS)}{rng.choice(VERBS)}{rng.choice(PLACES)}，{word()}與{word()}有關。"
        for _ in range(sentences)
    )
    return "".join(parts)


def page(number: int, title: str, text: str, ns: int = 0) -> str:
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n"
        f"    <id>{number}</id>\n    <revision>\n"
        f"      <id>{number + 5000}</id>\n      <model>wikitext</model>\n"
        f'      <text xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
    )


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """60 articles in streams of ten pages, with something for each filter."""
    rng = random.Random(4)
    bodies = [prose(rng) for _ in range(60)]
    bodies[40] = bodies[7]  # another title: a near copy
    bodies[50] = bodies[9][:-1] + "！又"
    note = "{{Infobox|name=x}}&lt;ref&gt;來源&lt;/ref&gt;"
    bodies[20] = f"-{{zh-hans:计算机;zh-hant:電腦}}-是一種機器。{note}{bodies[20]}"
    bodies[21] = "'''水星'''可以指：\n* [[水星]]\n{{消歧義}}" + bodies[21]
    bodies[22] = "列表\n" + "\n".join(f"* [[條目{i}甲乙丙丁]]" for i in range(30))
    bodies[23] = "#重定向 [[北京]]"
    head = (
        '<mediawiki version="0.11" xml:lang="zh">\n'
        "  <siteinfo>\n    <sitename>Wikipedia</sitename>\n"
        "    <dbname>zhwiki</dbname>\n    <base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base>\n"
        "  </siteinfo>\n"
    )
    pages = [page(number, f"條目{number}", body) for number, body in enumerate(bodies)]
    pages.append(page(100, "Talk:x", bodies[0], ns=1))
    groups = ["".join(pages[at : at + 10]) for at in range(0, len(pages), 10)]
    path = tmp_path / "zhwiki-20261101-pages-articles-multistream.xml.bz2"
    path.write_bytes(
        b"".join(bz2.compress(part.encode()) for part in [head, *groups, "</mediawiki>\n"])
    )
    return path


def test_one_command_from_a_dump_to_a_store(
    dump, tmp_path, settings, tokenizer_dir, capsys, monkeypatch
):
    monkeypatch.setattr(decompress_bz2, "CHUNK", 2000)  # several tasks for the threads
    common = [f"data.tokenizer={tokenizer_dir}", "data.min_val_tokens=1", "data.val_fraction=0.2"]
    found = []
    for workers in (1, 2):
        store = tmp_path / f"area{workers}" / "store"
        words = [*common, f"data.store={store}", f"data.workers={workers}"]
        words.append("data.shard_bytes=20KiB")
        assert main(["prepare", "--wiki", str(dump), *words]) == 0
        found.append(digests(store))
    assert found[0] == found[1]

    said = capsys.readouterr().out
    assert "data.quality=basic data.dedup=minhash data.convert=t2s" in said
    assert "wikillm train data.path=null data.store=" in said
    opened = Store.open(store)
    assert len(opened.manifest.shards) > 2
    assert {line.reason: line.records for line in opened.manifest.funnel.dropped} == {
        "near copy": 2,
        "other namespace": 1,
        "redirect": 1,
        "quality: disambiguation page": 1,
        "quality: hardly more than a list": 1,
    }
    assert all(line.characters > 0 for line in opened.manifest.funnel.dropped)
    text = "".join(
        opened.tokenizer().decode(stream.read(0, stream.n_tokens).tolist())
        for stream in (opened.train, opened.val)
    )
    assert "计算机是一种机器。" in text
    for gone in ("電", "這", "Infobox", "來源", "来源", "{", "消歧"):
        assert gone not in text


def test_the_store_says_whose_text_it_is(dump, settings, tokenizer_dir, capsys):
    words = [f"data.tokenizer={tokenizer_dir}", "data.min_val_tokens=1", "data.val_fraction=0.2"]
    assert main(["prepare", "--wiki", str(dump), *words, "--json"]) == 0
    store = Path(json.loads(capsys.readouterr().out)["store"])
    told = (store / "ATTRIBUTION.md").read_text()
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    site = "https://zh.wikipedia.org"
    links = (f"{site}/wiki/TITLE", f"{site}/?oldid=REVISION")
    for part in (dump.name, digest, "2026-11-01", "CC BY-SA 4.0", "zhwiki", *links):
        assert part in told
    files = sorted((store / "attribution").iterdir())
    rows = [line.split("\t") for path in files for line in path.open()]
    opened = Store.open(store)
    indexes = [index for stream in (opened.train, opened.val) for index in stream.indexes()]
    places = [(int(one["source"]), int(one["offset"])) for index in indexes for one in index]
    # A line for each document that is kept.
    assert [(int(row[0]), int(row[1])) for row in rows] == sorted(places)
    assert rows[3][2:] == ["3", "5003", "條目3\n"]
    xml = bz2.decompress(dump.read_bytes())
    for row in rows:
        at = int(row[1])
        assert f"<title>{row[4].strip()}</title>".encode() in xml[at : at + 60]


def test_what_the_user_sets_stays_and_what_is_missing_is_said(dump, monkeypatch):
    words, notes = wiki_settings([str(dump)], ["data.dedup=none", "--data.convert=tw2sp"])
    assert words == [f"data.path={dump}", "data.quality=basic"] and not notes
    monkeypatch.setattr(filter_settings, "find_spec", lambda name: None)
    words, notes = wiki_settings([str(dump)], [])
    assert words[1:] == ["data.quality=basic", "data.dedup=exact", "data.convert=none"]
    assert len(notes) == 2 and all("wikillm[wiki]" in note for note in notes)
    assert not wiki_settings([str(dump)], ["data.dedup=exact", "data.convert=none"])[1]
    monkeypatch.undo()
    address = "https://dumps.example.org/zhwiki-latest-pages-articles.xml.bz2"
    words = wiki_settings([address], [])[0]
    found = ["data.quality=basic", "data.dedup=minhash", "data.convert=t2s"]
    assert words == [f"data.path={address}", *found]


def test_what_is_no_dump_or_the_same_dump_twice_is_refused(dump, tmp_path):
    twin = dump.with_name(dump.name.replace("-multistream", ""))
    twin.write_bytes(dump.read_bytes())
    with pytest.raises(ConfigError, match="same dump in two forms") as refused:
        wiki_settings([str(dump), str(twin)], [])
    assert str(dump) in str(refused.value.fix)
    other = tmp_path / "a.jsonl"
    other.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="not a MediaWiki dump"):
        wiki_settings([str(other)], [])
    with pytest.raises(ConfigError, match=r"--wiki and data\.path both"):
        wiki_settings([str(dump)], ["data.path=x"])


def read(content: bytes, path: Path, threads: int) -> tuple[bytes, str, int]:
    """What came out, what was said at the end, and the bytes that were told to be read."""
    path.write_bytes(content)
    out, told, said = bytearray(), [0], ""

    def add(size: int) -> None:
        told[0] += size

    try:
        for piece in pieces(SourceFile(str(path), len(content), "jsonl", "bz2"), 0, add, threads):
            assert len(piece) <= 2 << 20
            out += piece
    except DataError as error:
        said = f"{error.what} {error.got}"
    return bytes(out), said, told[0]


@pytest.mark.parametrize(
    "damage", ["none", "padding", "flipped bit", "cut off", "one stream", "bomb", "no bz2 behind"]
)
def test_threads_give_the_bytes_and_the_errors_of_one(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(decompress_bz2, "CHUNK", 3000)
    monkeypatch.setattr(decompress_bz2, "MAX_STREAM", 20_000)
    rng = random.Random(1)
    parts = [rng.randbytes(rng.randrange(4000)).hex().encode() for _ in range(60)]
    streams = [bz2.compress(part) for part in parts]
    padded = [stream + bytes(rng.randrange(4)) for stream in streams] + [bz2.compress(b"")]
    whole = b"".join(streams)
    content = {
        "none": whole,
        "padding": b"".join(padded),
        "flipped bit": whole[:40_000] + bytes([whole[40_000] ^ 4]) + whole[40_001:],
        "cut off": whole[:-50],
        "one stream": streams[0] + bz2.compress(b"".join(parts)) + streams[1],
        "bomb": streams[0] + bz2.compress(bytes(50 << 20)) + streams[1],
        "no bz2 behind": whole + b"and then something else",
    }[damage]
    alone = read(content, tmp_path / "x.bz2", threads=1)
    together = read(content, tmp_path / "x.bz2", threads=3)
    assert together[:2] == alone[:2]
    assert bool(alone[1]) == (damage in ("flipped bit", "cut off", "no bz2 behind"))
    if not alone[1]:
        assert alone[2] == together[2] == len(content)
    if damage in ("none", "padding"):
        assert alone[0] == b"".join(parts)
        with open(tmp_path / "x.bz2", "rb") as file:  # by the threads alone
            streams_of_file = partial(decompress.streams, "bz2")
            by_threads = decompress_bz2.decompress_in_threads(file, 3, streams_of_file)
            assert b"".join(by_threads) == alone[0]


def test_a_single_stream_is_told_from_many(tmp_path, dump):
    single = tmp_path / "single.bz2"
    single.write_bytes(bz2.compress(b"x" * 1000))
    assert not decompress_bz2.has_many_streams(single)
    assert decompress_bz2.has_many_streams(dump)
