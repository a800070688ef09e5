"""Where Chinese Wikipedia is looked for: one list in two places, and a data volume at an absolute path."""

from __future__ import annotations

from pathlib import Path

import pytest

from wikillm.config.load import load
from wikillm.data.sources import locate


def test_the_preset_and_the_search_have_the_same_places() -> None:
    assert load("wiki-zh-120m").config.data.path == locate.WIKI_ZH_CANDIDATES


def test_a_volume_is_found_after_the_folders_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, here = tmp_path / "data", tmp_path / "here [1]"
    for folder in (volume / "wiki", here / "data"):
        folder.mkdir(parents=True)
    places = tuple(
        p.replace("/data/*", f"{volume}/*") if p.startswith("/") else p
        for p in locate.WIKI_ZH_CANDIDATES
    )
    monkeypatch.setattr(locate, "WIKI_ZH_CANDIDATES", places)
    monkeypatch.chdir(here)
    for name in ("zhwiki-20240101-x.xml.bz2", "zhwiki-20250101-x.xml.bz2"):
        (volume / "wiki" / name).write_bytes(b"x")
    assert locate.locate([]) == [volume / "wiki" / "zhwiki-20250101-x.xml.bz2"]
    (here / "data" / "zhwiki-20200101-x.xml.bz2").write_bytes(b"x")
    assert locate.locate([]) == [Path("data/zhwiki-20200101-x.xml.bz2")]
