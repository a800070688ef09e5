"""What `data.path` means: files, folders and globs; hidden names left out, links followed once."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from wikillm.config.load import load
from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources import locate as module
from wikillm.data.sources import walk
from wikillm.data.sources.locate import WIKI_ZH_CANDIDATES, locate


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """corpus/a.jsonl, a hidden duplicate, and corpus/linked -> elsewhere (b.jsonl, a link back)."""
    hidden = "corpus/.ipynb_checkpoints/a-checkpoint.jsonl"
    for name in ("corpus/a.jsonl", hidden, "elsewhere/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": f"{Path(name).name} document {i}"}) for i in range(50)]
        (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "corpus" / "linked").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to("../corpus")
    (tmp_path / "elsewhere" / "again").symlink_to(".")
    return tmp_path / "corpus"


def names(paths: list[Path], below: Path) -> list[str]:
    return [str(path.relative_to(below)) for path in paths]


def test_hidden_folders_are_left_out_and_links_are_followed_once(corpus, settings, capsys):
    store = prepare_store(settings(corpus))
    found = [Path(source.path) for source in store.manifest.sources]
    assert names(found, corpus) == ["a.jsonl", "linked/b.jsonl"]
    assert store.manifest.funnel.read_records == 100 and store.manifest.duplicates == 0
    assert "since they are hidden: .ipynb_checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("", ["a.jsonl", "linked/b.jsonl"]),
        (".ipynb_checkpoints", [".ipynb_checkpoints/a-checkpoint.jsonl"]),
        ("*", ["a.jsonl", "linked/b.jsonl"]),
        ("**", ["a.jsonl", "linked/b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "linked/b.jsonl"]),
        ("*/*.jsonl", ["linked/b.jsonl"]),
        (".*/*.jsonl", [".ipynb_checkpoints/a-checkpoint.jsonl"]),
        ("[a-c].json?", ["a.jsonl"]),
        ("linke[d]/**/b.jsonl", ["linked/b.jsonl"]),
    ],
)
def test_folders_and_globs_follow_links_and_leave_hidden_names_out(corpus, pattern, wanted):
    assert names(locate([str(corpus / pattern)]), corpus) == wanted


def test_special_files_and_dangling_links_are_logged(corpus, capsys):
    os.mkfifo(corpus / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(corpus)  # the address of a socket is short
        server.bind("socket.jsonl")
        os.chdir(here)
    (corpus / "latest").symlink_to("gone")
    (corpus / "notes.md").write_text("x")
    (corpus / "part2.jsonl.zip").write_text("x")
    assert names(locate([str(corpus)]), corpus) == ["a.jsonl", "linked/b.jsonl"]
    shown = capsys.readouterr().out
    assert "latest (a link to gone, which cannot be followed: No such file or directory)" in shown
    assert "pipe.jsonl (a FIFO), socket.jsonl (a socket)" in shown
    assert "beside data: notes.md, part2.jsonl.zip" in shown
    for pattern, kind in (("pipe*", "a FIFO"), ("socket*", "a socket")):
        with pytest.raises(DataError, match=f"names {kind}"):
            locate([str(corpus / pattern)])


@pytest.mark.parametrize("entry", ["", "*.jsonl", "**", "part3.jsonl"])
def test_a_dangling_link_named_like_a_source_is_an_error(corpus, entry):
    (corpus / "part3.jsonl").symlink_to("annex/objects/gone")
    with pytest.raises(DataError, match="leads nowhere") as caught:
        locate([str(corpus / entry)])
    assert "part3.jsonl is a link to annex/objects/gone" in caught.value.got
    (corpus / "part3.jsonl").unlink()
    (corpus / "part3.jsonl").symlink_to("part3.jsonl")
    with pytest.raises(DataError, match="leads nowhere|cannot be read"):
        locate([str(corpus / entry)])


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "*/*.jsonl"])
def test_a_folder_that_may_not_be_read_is_an_error(corpus, monkeypatch, pattern):
    """Root may read everything, so for root the system's refusal is simulated."""
    (corpus / "closed").mkdir()
    (corpus / "closed" / "c.jsonl").write_text("x")
    (corpus / "closed").chmod(0)
    iterdir = Path.iterdir
    if os.geteuid() == 0:

        def refused(path: Path):
            if path.name == "closed":
                raise PermissionError(13, "Permission denied")
            return iterdir(path)

        monkeypatch.setattr(walk.Path, "iterdir", refused)
    with pytest.raises(DataError, match="folder of data.path cannot be read") as caught:
        locate([str(corpus / pattern)])
    assert f"{corpus / 'closed'}: Permission denied" in caught.value.got
    (corpus / "closed").chmod(0o700)


def test_a_comma_in_a_name_is_explained(corpus, settings):
    whole = corpus / "wiki,part1, 2.jsonl"
    whole.write_text((corpus / "a.jsonl").read_text())
    cfg = settings(*str(whole).split(","))
    with pytest.raises(DataError, match="commas separate paths") as caught:
        prepare_store(cfg)
    assert caught.value.fix == f"""'data.path=["{whole}"]'"""
    # Other entries stay in the fix.
    first = str(corpus / "a.jsonl")
    last = str(corpus / "linked")
    with pytest.raises(DataError, match="commas separate paths") as caught:
        locate([first, *str(whole).split(","), last])
    assert caught.value.fix == f"""'data.path=["{first}", "{whole}", "{last}"]'"""
    with pytest.raises(DataError, match="does not exist") as caught:
        locate([first, last.replace("linked", "Linked")])
    assert caught.value.fix == f"""'data.path=["{first}", "{last}"]'"""


def test_a_folder_without_sources_names_what_was_left_out(corpus):
    (corpus / "a.jsonl").rename(corpus / ".a.jsonl")
    (corpus / "linked").unlink()
    with pytest.raises(DataError, match="no file that is named like a corpus") as caught:
        locate([str(corpus)])
    assert f"left out: {corpus / '.a.jsonl'}, which is hidden" in caught.value.got


def test_another_text_key_in_some_files_is_not_answered_with_data_text_key(corpus, settings):
    """With data.text_key=content the other file would be refused instead."""
    (corpus / "b.jsonl").write_text('{"content": "a text"}\n')
    with pytest.raises(DataError, match="no text under 'text'") as caught:
        prepare_store(settings(corpus))
    assert f"the text of {corpus / 'a.jsonl'} is under 'text'" in caught.value.got
    assert "data.mixture" in caught.value.fix and "data.text_key=" not in caught.value.fix


@pytest.mark.parametrize("wanted", ["csv", "json", "mediawiki", "parquet"])
def test_a_format_that_the_file_does_not_have_is_answered_with_auto(corpus, settings, wanted):
    with pytest.raises(DataError, match=f"data.format={wanted} says: it is jsonl") as caught:
        prepare_store(settings(corpus / "a.jsonl", format=wanted))
    assert caught.value.fix == "data.format=auto"


@pytest.mark.parametrize(
    ("there", "near"),
    [
        ("wiki.md", None),
        ("Wiki.JSONL", "Wiki.JSONL"),
        ("wik.jsonl", "wik.jsonl"),
        ("e.jsonl", None),
        ("wikibooks.jsonl", None),
        ("", None),
    ],
)
def test_a_missing_path_names_the_nearest_folder_and_a_similar_source(tmp_path, there, near):
    (tmp_path / (there or "other")).write_text("x")
    entry = tmp_path / ("wiki.jsonl" if there else "no/such/file.jsonl")
    with pytest.raises(DataError, match="does not exist") as caught:
        locate([str(entry)])
    assert f"exists is {tmp_path}: {there or 'other'}" in caught.value.got
    fix = f"data.path={tmp_path / near}" if near else "name an existing file or folder"
    assert caught.value.fix.startswith(fix)


def test_files_folders_and_globs_in_a_fixed_order_each_once(tmp_path):
    wanted = ["-dash.jsonl", "[1].jsonl", "a.json", "b 北京.jsonl", "b/x.jsonl", "b-c/x.jsonl"]
    wanted += ["deep/c.xml-p1p42.bz2"]
    for name in (*wanted, "notes.md", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a-link").symlink_to("deep")  # a folder counts where it lies
    assert names(locate([str(tmp_path)]), tmp_path) == sorted(wanted, key=Path)
    entries = [str(tmp_path / name) for name in ("a.json", "*.json*", "nothing-*.json")]
    found = names(locate(entries), tmp_path)
    assert (found[0], len(found)) == ("a.json", 4)
    assert names(locate([str(tmp_path / "[1].jsonl")]), tmp_path) == ["[1].jsonl"]


def test_text_files_of_a_folder_count_only_without_data(tmp_path, capsys):
    for name in ("b.txt", "a.txt.xz"):
        (tmp_path / name).write_text("x")
    assert names(locate([str(tmp_path)]), tmp_path) == ["a.txt.xz", "b.txt"]
    (tmp_path / "rows.parquet").write_text("x")
    assert names(locate([str(tmp_path)]), tmp_path) == ["rows.parquet"]
    assert ".txt beside data: a.txt.xz, b.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.jsonl", "FIFO"),
        ("empty.jsonl", "empty"),
        ("loop.jsonl", "cannot be read"),
        ("folder", "no file"),
        ("/dev/null", "a device"),
        ("*.xml", "No file matches"),
    ],
)
def test_what_is_no_readable_file_is_refused(tmp_path, name, message):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme.md").write_text("x")
    with pytest.raises(DataError, match=message):
        locate([str(tmp_path / name)])


# --- the default source: Chinese Wikipedia


def test_the_preset_and_the_search_have_the_same_places():
    assert load("wiki-zh-120m").config.data.path == WIKI_ZH_CANDIDATES


@pytest.mark.parametrize("paths", [[], WIKI_ZH_CANDIDATES])
def test_without_a_path_the_newest_chinese_wikipedia_is_found(tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no Chinese Wikipedia") as caught:
        locate(paths)
    assert "data.path=FILE" in caught.value.fix
    (tmp_path / "WIKI_CN").mkdir()
    for name in ("wikipedia-zh-cn-20230101.json", "wikipedia-zh-cn-20240820.json"):
        (tmp_path / "WIKI_CN" / name).write_text("x")
    (tmp_path / "WIKI_CN" / "zhwiki-20240101.xml.bz2").write_text("x")
    (found,) = locate(paths)
    assert found.name == "wikipedia-zh-cn-20240820.json"


def test_a_volume_is_found_after_the_folders_beside_the_run(tmp_path, monkeypatch):
    volume = tmp_path / "data"
    here = tmp_path / "here [1]"
    for folder in (volume / "wiki", here / "data"):
        folder.mkdir(parents=True)
    places = tuple(place.replace("/data/*", f"{volume}/*") for place in WIKI_ZH_CANDIDATES)
    monkeypatch.setattr(module, "WIKI_ZH_CANDIDATES", places)
    monkeypatch.chdir(here)
    for name in ("zhwiki-20240101-x.xml.bz2", "zhwiki-20250101-x.xml.bz2"):
        (volume / "wiki" / name).write_bytes(b"x")
    assert locate([]) == [volume / "wiki" / "zhwiki-20250101-x.xml.bz2"]
    (here / "data" / "zhwiki-20200101-x.xml.bz2").write_bytes(b"x")
    assert locate([]) == [Path("data/zhwiki-20200101-x.xml.bz2")]
