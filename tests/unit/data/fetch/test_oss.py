"""oss:// by its real client (ossfs) against a small loopback server; needs the extra `remote`."""

from __future__ import annotations

import pytest
from harness.oss_server import KEY_ID, serve_oss

from wikillm.core.errors import DataError
from wikillm.data.fetch import cache as cache_module
from wikillm.data.fetch import remote
from wikillm.data.fetch.cache import Cache

pytest.importorskip("ossfs")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "BACKOFF_SECONDS", 0.001)
    with serve_oss() as found:
        monkeypatch.setenv("OSS_ENDPOINT", found.url)
        monkeypatch.setenv("OSS_ACCESS_KEY_ID", KEY_ID)
        monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "secret")
        yield found


def fetched(cache: Cache, url: str) -> bytes:
    with cache.exclusive():
        return cache.fetch(url).path.read_bytes()


def test_a_file_of_several_ranges_is_the_object(server, tmp_path, monkeypatch):
    """Ranges are inclusive there, and one that ends beyond the object brings all of it."""
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    server.objects["x.txt"] = bytes(range(250)) * 10
    assert fetched(Cache(str(tmp_path / "cache")), "oss://texts/x.txt") == server.objects["x.txt"]
    wanted = ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2499"]
    assert [ranges for _, ranges in server.log] == wanted


def test_a_wrong_key_is_reported_at_once(server, tmp_path, monkeypatch):
    server.objects["x.txt"] = b"text"
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "another")
    with pytest.raises(DataError, match="cannot be read") as caught:
        fetched(Cache(str(tmp_path / "cache")), "oss://texts/x.txt")
    assert "InvalidAccessKeyId" in caught.value.got and "secret" not in str(caught.value)


def test_an_interrupted_download_resumes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    server.objects["x.txt"] = bytes(range(250)) * 10
    server.cuts = [1000, 400]  # the second range is not whole
    assert fetched(Cache(str(tmp_path / "cache")), "oss://texts/x.txt") == server.objects["x.txt"]
    starts = [wanted.split("=")[1].split("-")[0] for _, wanted in server.log]
    assert starts[0] == "0" and starts.count("0") == 1
    assert set(starts[1:]) <= {"1000", "1400", "2000", "2400"}
