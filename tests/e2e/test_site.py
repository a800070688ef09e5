"""The documents as a site: built strictly, nothing from other servers, and a search in Chinese."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
from harness.browser import CHROMIUM, WHY_NOT, Page, chromium
from harness.checkout import files_of

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(
        not all(map(find_spec, ("material", "mkdocs_static_i18n", "jieba"))),
        reason="needs the extra `docs`",
    ),
]
FOUND = """[...document.querySelectorAll(".md-search-result__link")].map(
  link => new URL(link.href).pathname)"""


@pytest.fixture(scope="module")
def site(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, since the build writes into it."""
    copy = tmp_path_factory.mktemp("site") / "wikillm"
    for name in files_of(repo):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo / name, copy / name)
    build = [sys.executable, "docs/site.py"]
    done = subprocess.run(build, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build" / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(https?://[^\s\">]+)|<link[^>]+"
        r"rel=\"?(?:stylesheet|preconnect|icon)[^>]+href=\"?(https?://[^\s\">]+)"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    assert not [page for page in pages if loaded.search(page.read_text(encoding="utf-8"))]


def search(page: Page, address: str, words: str) -> list[str]:
    """The paths that the page's own search shows, best first."""
    page.call("Page.navigate", url=f"{address}/zh/index.html?q={quote(words)}")
    for _ in range(120):
        time.sleep(0.25)
        found = page.value(f"JSON.stringify({FOUND})")
        if found not in (None, "[]"):
            return re.findall(r'"([^"]+)"', found)
    return []


@pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
def test_the_search_finds_words_within_chinese_sentences(site: Path, address: str) -> None:
    with chromium() as page:
        for words, where in (
            ("续训", "/zh/guide/training.html"),
            ("检查点", "/zh/guide/training.html"),
            ("显存", "/zh/guide/training.html"),
        ):
            text = (site / where.lstrip("/")).read_text(encoding="utf-8")
            assert re.search(f"[\u4e00-\u9fff]{words}[\u4e00-\u9fff]", text), (
                "not within a sentence"
            )
            assert where in search(page, address, words), words
        assert search(page, address, "checkpoint")[0].startswith("/guide/"), "records come last"
        elsewhere = [url for url in page.requests if not url.startswith((address, "data:"))]
        assert not elsewhere
