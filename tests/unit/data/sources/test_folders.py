"""Folders and globs: hidden names left out, links followed once, and everything else named."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources import walk
from wikillm.data.sources.locate import locate


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """corpus/a.jsonl, a hidden copy of it, and corpus/linked -> elsewhere, which has b.jsonl and a link back."""
    for name in (
        "corpus/a.jsonl",
        "corpus/.ipynb_checkpoints/a-checkpoint.jsonl",
        "elsewhere/b.jsonl",
    ):
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
    assert names([Path(s.path) for s in store.manifest.sources], corpus) == [
        "a.jsonl",
        "linked/b.jsonl",
    ]
    assert store.manifest.funnel.read_records == 100 and store.manifest.duplicates == 0
    assert "since they are hidden: .ipynb_checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*", ["a.jsonl", "linked/b.jsonl"]),
        ("**", ["a.jsonl", "linked/b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "linked/b.jsonl"]),
        ("*/*.jsonl", ["linked/b.jsonl"]),
        (".*/*.jsonl", [".ipynb_checkpoints/a-checkpoint.jsonl"]),
        ("[a-c].json?", ["a.jsonl"]),
        ("linke[d]/**/b.jsonl", ["linked/b.jsonl"]),
    ],
)
def test_globs_take_folders_links_and_any_depth(corpus, pattern, wanted):
    assert names(locate([str(corpus / pattern)]), corpus) == wanted


def test_a_hidden_folder_that_is_named_is_read(corpus):
    hidden = corpus / ".ipynb_checkpoints"
    assert names(locate([str(hidden)]), corpus) == [".ipynb_checkpoints/a-checkpoint.jsonl"]


def test_the_order_is_that_of_the_paths_and_a_folder_counts_where_it_lies(tmp_path):
    for name in ("b/x.jsonl", "b-c/x.jsonl", "a.jsonl", "z/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a-link").symlink_to("z")
    assert names(locate([str(tmp_path)]), tmp_path) == [
        "a.jsonl",
        "b/x.jsonl",
        "b-c/x.jsonl",
        "z/x.jsonl",
    ]


def test_what_is_no_file_is_named(corpus, capsys):
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
    said = capsys.readouterr().out
    assert "latest (a link to gone, which cannot be followed: No such file or directory)" in said
    assert "pipe.jsonl (a FIFO), socket.jsonl (a socket)" in said
    assert "not named like a corpus: notes.md, part2.jsonl.zip" in said
    for pattern, kind in (("pipe*", "a FIFO"), ("socket*", "a socket")):
        with pytest.raises(DataError, match=f"names {kind}"):
            locate([str(corpus / pattern)])


@pytest.mark.parametrize("entry", ["", "*.jsonl", "**", "part3.jsonl"])
def test_a_link_to_nothing_is_an_error_where_it_is_named_like_a_source(corpus, entry):
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
    """Root may read everything, so the refusal of the system is put in by hand where root runs this."""
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


def test_a_comma_in_a_name_and_braces_are_explained(corpus, settings):
    whole = corpus / "wiki,part1, 2.jsonl"
    whole.write_text((corpus / "a.jsonl").read_text())
    cfg = settings(*str(whole).split(","))
    with pytest.raises(DataError, match="commas separate paths") as caught:
        prepare_store(cfg)
    assert caught.value.fix == f"""'data.path=["{whole}"]'"""
    with pytest.raises(DataError, match="Braces"):
        locate([f"{corpus}/{{a", "b}.jsonl"])


def test_a_similar_name_is_proposed_only_where_it_can_be_read(tmp_path):
    (tmp_path / "wiki.md").write_text("x")
    with pytest.raises(DataError, match="does not exist") as caught:
        locate([str(tmp_path / "wiki.jsonl")])
    assert caught.value.fix == "data.path=FILE or FOLDER that exists"
    (tmp_path / "Wiki.JSONL").write_text("x")
    with pytest.raises(DataError) as caught:
        locate([str(tmp_path / "wiki.jsonl")])
    assert caught.value.fix == f"data.path={tmp_path / 'Wiki.JSONL'}"
