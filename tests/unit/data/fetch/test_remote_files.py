"""Files from a real web server and from buckets: the same store, in a bounded cache."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import fsspec  # noqa: F401  (its registry, by sys.modules)
import pytest
from harness.file_server import serve
from harness.oss_server import KEY_ID, serve_oss

from wikillm.core.errors import ConfigError, DataError, MachineError
from wikillm.data.fetch import cache as cache_module
from wikillm.data.fetch.cache import Cache
from wikillm.data.fetch.remote import file_name, without_secrets
from wikillm.data.prepare.prepare import prepare_store


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BACKOFF_SECONDS", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    with serve(root) as found:
        yield found


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(str(tmp_path / "cache"))


def fetched(cache: Cache, url: str) -> bytes:
    with cache.exclusive():
        return cache.fetch(url).path.read_bytes()


def gives_up_after(size: int) -> list[tuple]:
    """The faults of a download that is cut after `size` bytes, and of all attempts to resume it."""
    return [("pass",), ("cut", size), *[("status", 500)] * cache_module.ATTEMPTS]


def test_a_store_from_the_web_equals_that_of_the_local_file(
    server, tmp_path, texts, write_source, settings
):
    path = write_source(server.root, "plain.jsonl.bz2", texts(120))
    cfg = settings(f"{server.url}/plain.jsonl.bz2", cache=str(tmp_path / "cache"))
    store, local = prepare_store(cfg), prepare_store(settings(path, store=str(tmp_path / "local")))
    assert store.manifest.fingerprint == local.manifest.fingerprint
    assert [s.splits for s in store.manifest.shards] == [s.splits for s in local.manifest.shards]
    (source,) = store.manifest.sources
    assert source.url == f"{server.url}/plain.jsonl.bz2"
    assert source.version.startswith('"') and len(source.sha256) == 64
    before = server.sent
    again = prepare_store(cfg)
    assert again.dir == store.dir
    assert server.sent == before + 1  # one byte shows that it is the same
    note = json.loads((Path(source.path).parent / ".json").read_text())
    assert note["sha256"] == source.sha256 and note["size"] == path.stat().st_size


def test_several_ranks_download_once(server, tmp_path, texts, write_source, settings):
    from concurrent.futures import ProcessPoolExecutor

    write_source(server.root, "plain.jsonl", texts(60))
    cfg = settings(f"{server.url}/plain.jsonl", cache=str(tmp_path / "cache"))
    with ProcessPoolExecutor(2) as pool:
        stores = list(pool.map(_prepared_fingerprint, [cfg, cfg]))
    assert len(set(stores)) == 1 and len(server.fetched("plain.jsonl")) == 1


def _prepared_fingerprint(cfg) -> str:
    return prepare_store(cfg).manifest.fingerprint


def test_an_interrupted_download_resumes(server, cache):
    content = bytes(range(256)) * 4000
    (server.root / "x.txt").write_bytes(content)
    cuts = [("cut", 300_000), ("cut", 0), ("status", 503), ("cut", 100_000)]
    server.faults["x.txt"] = [("pass",), *cuts]
    assert fetched(cache, f"{server.url}/x.txt") == content
    assert server.fetched("x.txt") == ["", *["bytes=300000-"] * 3, "bytes=400000-"]


@pytest.mark.parametrize("is_changed", [False, True])
def test_the_next_start_resumes_a_partial_download_of_the_same_version(server, cache, is_changed):
    (server.root / "x.txt").write_bytes(b"old" * 100_000)
    server.faults["x.txt"] = gives_up_after(200_000)
    with pytest.raises(DataError, match="cannot be reached") as caught:
        fetched(cache, f"{server.url}/x.txt")
    assert "500" in caught.value.got and "data.path=FILE" in caught.value.fix
    content = (b"new" if is_changed else b"old") * 100_000
    if is_changed:
        (server.root / "x.txt").write_bytes(content)
    server.log.clear()
    assert fetched(cache, f"{server.url}/x.txt") == content
    assert server.fetched("x.txt") == ["" if is_changed else "bytes=200000-"]


def test_a_server_without_ranges_sends_the_whole_file(server, cache):
    server.ranges = False
    content = b"abcdefgh" * 60_000
    (server.root / "x.txt").write_bytes(content)
    server.faults["x.txt"] = [("pass",), ("cut", 200_000)]
    assert fetched(cache, f"{server.url}/x.txt") == content
    server.faults["x.txt"] = [("cut", 100_000)] * 50  # never gets further: it must end
    (server.root / "x.txt").write_bytes(content * 2)
    with pytest.raises(DataError, match="cannot be reached"):
        fetched(cache, f"{server.url}/x.txt")


def test_a_file_that_changes_during_the_download_is_refused(server, cache):
    (server.root / "x.txt").write_bytes(b"one" * 1000)
    server.faults["x.txt"] = [("pass",), ("pass",), ("replace", b"two" * 1000)]
    with pytest.raises(DataError, match="changed while it was downloaded"):
        fetched(cache, f"{server.url}/x.txt")
    assert fetched(cache, f"{server.url}/x.txt") == b"two" * 1000
    (server.root / "x.txt").write_bytes(b"three" * 1000)
    assert fetched(cache, f"{server.url}/x.txt") == b"three" * 1000


@pytest.mark.parametrize("code", [404, 403, 410])
def test_permanent_errors_are_reported_at_once(server, cache, code):
    server.faults["x.txt"] = [("status", code)]
    with pytest.raises(DataError, match="cannot be read") as caught:
        fetched(cache, f"{server.url}/x.txt?signature=secret")
    assert f"HTTP {code}" in caught.value.got and "secret" not in str(caught.value)
    assert len(server.log) == 1


def test_an_unreachable_server(cache, tmp_path):
    with serve(tmp_path) as gone:
        (tmp_path / "x.txt").write_bytes(b"here")
        address = f"{gone.url}/x.txt"
        assert fetched(cache, address) == b"here"
    assert fetched(cache, address) == b"here"  # the copy, with a warning
    with pytest.raises(DataError, match="cannot be reached") as caught:
        fetched(cache, address.replace("x.txt", "y.txt"))
    assert "refused" in caught.value.got.lower()


def test_the_cache_stays_within_its_bytes(server, tmp_path):
    cache = Cache(str(tmp_path / "cache"), limit=2500)
    for name in "abc":
        (server.root / f"{name}.txt").write_bytes(name.encode() * 1000)
    fetched(cache, f"{server.url}/a.txt")
    fetched(cache, f"{server.url}/b.txt")
    fetched(cache, f"{server.url}/a.txt")  # b is now the one that was not used for longest
    fetched(cache, f"{server.url}/c.txt")
    assert sorted(path.name for _, _, path in cache.entries()) == ["a.txt", "c.txt"]
    with cache.exclusive():
        a = cache.fetch(f"{server.url}/a.txt").path
        c = cache.fetch(f"{server.url}/c.txt", keep={a}).path
        with pytest.raises(MachineError, match="data.cache_bytes") as caught:
            cache.fetch(f"{server.url}/b.txt", keep={a, c})
    assert "data.cache_bytes=3000" in caught.value.fix
    (server.root / "big.txt").write_bytes(b"x" * 4000)
    with pytest.raises(MachineError, match="too small"):
        fetched(cache, f"{server.url}/big.txt")


@pytest.mark.parametrize(
    ("address", "kind", "reason"),
    [
        ("ftp://host/x.jsonl", ConfigError, "scheme ftp"),
        ("https://me:secret@host/x.jsonl", ConfigError, "holds a user or a password"),
        ("http://127.0.0.1:1/folder/", ConfigError, "cannot be listed"),
        ("http://[::1", DataError, "cannot be read"),
        ("http://127.0.0.1:port/x.jsonl", DataError, "cannot be read"),
        ("http://127.0.0.1:1/a b.jsonl", DataError, "cannot be read"),
        ("http://127.0.0.1:1/ü.jsonl", DataError, "cannot be read"),
    ],
)
def test_invalid_addresses_are_refused(address, kind, reason, settings):
    with pytest.raises(kind, match=reason) as caught:
        prepare_store(settings(address))
    assert "secret" not in str(caught.value)


def test_shown_addresses_and_file_names():
    assert without_secrets("https://u:p@h/x?X-Amz-Signature=s#f") == "https://h/x"
    assert file_name("https://h/a%20b/..%2fx.jsonl.gz?q") == ".._x.jsonl.gz".lstrip(".")
    assert file_name("s3://bucket/zhwiki-20260101.xml.bz2") == "zhwiki-20260101.xml.bz2"


def test_a_missing_package_and_a_missing_endpoint_are_named(monkeypatch, settings):
    monkeypatch.delenv("OSS_ENDPOINT", raising=False)
    with pytest.raises(ConfigError, match="endpoint") as caught:
        prepare_store(settings("oss://bucket/x.jsonl"))
    assert "export OSS_ENDPOINT=" in caught.value.fix
    monkeypatch.setenv("OSS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ossfs", None)  # as if it were not installed
    # What another test has loaded.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "oss", raising=False)
    with pytest.raises(MachineError, match="needs the package ossfs") as caught:
        prepare_store(settings("oss://bucket/x.jsonl"))
    assert "wikillm[remote]" in caught.value.fix


def tokens_of(store) -> int:
    return store.train.n_tokens + store.val.n_tokens


@pytest.fixture(scope="module", params=["s3", "oss"])
def bucket(request: pytest.FixtureRequest):
    """A bucket of a real S3 server (moto), or of a small OSS server: its address, put(key, bytes).

    The clients are the real ones; they need the extra `remote`.
    """
    pytest.importorskip(f"{request.param}fs")
    environment = pytest.MonkeyPatch()
    if request.param == "oss":
        with serve_oss() as found:
            environment.setenv("OSS_ENDPOINT", found.url)
            environment.setenv("OSS_ACCESS_KEY_ID", KEY_ID)
            environment.setenv("OSS_ACCESS_KEY_SECRET", "secret")
            yield "oss://texts", found.objects.__setitem__
            environment.undo()
        return
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        environment.setenv(f"AWS_{name}", "test")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="texts")
    yield (
        "s3://texts",
        lambda key, content: client.put_object(Bucket="texts", Key=key, Body=content),
    )
    server.stop()
    environment.undo()


def test_files_of_a_bucket_by_name_by_glob_and_by_folder(
    bucket, tmp_path, texts, write_source, settings
):
    address, put = bucket
    every = texts(90)
    for i in range(3):
        path = write_source(tmp_path, "plain.jsonl", every[i * 30 : i * 30 + 30])
        put(f"corpus/{i}.jsonl", path.read_bytes())
    put("corpus/README.md", b"not text")
    whole = prepare_store(settings(write_source(tmp_path, "plain.jsonl", every)))
    found = {}
    for entry in (f"{address}/corpus/*.jsonl", f"{address}/corpus/"):
        store = prepare_store(settings(entry, cache=str(tmp_path / "cache")))
        urls = [source.url for source in store.manifest.sources]
        assert urls == [f"{address}/corpus/{i}.jsonl" for i in range(3)]
        assert all(source.version for source in store.manifest.sources)
        found[entry] = store.manifest.fingerprint
        assert tokens_of(store) == tokens_of(whole)
    assert len(set(found.values())) == 1
    one = prepare_store(settings(f"{address}/corpus/1.jsonl", cache=str(tmp_path / "cache")))
    assert one.manifest.funnel.kept_records == 30
    with pytest.raises(DataError, match="cannot be read") as caught:
        prepare_store(settings(f"{address}/corpus/9.jsonl"))
    assert "no such file" in caught.value.got
    with pytest.raises(DataError, match="No file matches"):
        prepare_store(settings(f"{address}/nothing/*.jsonl"))


def test_a_changed_object_is_fetched_again(bucket, cache):
    address, put = bucket
    for content in (b"one", b"three"):
        put("x.txt", content)
        assert fetched(cache, f"{address}/x.txt") == content


def test_a_prepared_store_in_a_bucket(bucket, tmp_path, texts, write_source, settings):
    address, put = bucket
    path = write_source(tmp_path, "plain.jsonl", texts(60))
    local = prepare_store(settings(path, store=str(tmp_path / "store")))
    for path in local.dir.rglob("*"):
        if path.is_file():
            put(f"stores/one/{path.relative_to(local.dir)}", path.read_bytes())
    far = prepare_store(settings(store=f"{address}/stores/one", cache=str(tmp_path / "cache")))
    assert far.manifest == local.manifest
    tokens = [one.train.read(0, one.train.n_tokens).tolist() for one in (far, local)]
    assert tokens[0] == tokens[1]


def test_a_failure_is_shared_only_by_those_who_want_the_same_file(server, cache):
    (server.root / "good.txt").write_bytes(b"good")
    is_held, outcomes = threading.Event(), {}

    def fail() -> None:
        with suppress(DataError), cache.exclusive(about="bad"):
            is_held.set()
            time.sleep(0.7)  # the others are waiting by then
            raise DataError("bad is not there.")

    def want(name: str) -> None:
        try:
            with cache.exclusive(about=name):
                outcomes[name] = cache.fetch(f"{server.url}/good.txt").path.read_bytes()
        except DataError as error:
            outcomes[name] = error.what

    threads = [threading.Thread(target=want, args=(name,)) for name in ("good", "bad")]
    threads.insert(0, threading.Thread(target=fail))
    threads[0].start()
    is_held.wait()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes["good"] == b"good"
    # Shared, unless `good` held the lock in between.
    assert outcomes["bad"] in ("bad is not there.", b"good")


def test_the_part_of_a_cut_download_counts_and_makes_room(server, tmp_path):
    cache = Cache(str(tmp_path / "cache"), limit=1_000_000)
    for name in ("cut.txt", "next.txt"):
        (server.root / name).write_bytes(bytes(700_000))
    server.faults["cut.txt"] = gives_up_after(600_000)
    with pytest.raises(DataError, match="cannot be reached"):
        fetched(cache, f"{server.url}/cut.txt")
    assert sum(path.stat().st_size for path in cache.folder.rglob(".part")) == 600_000
    assert fetched(cache, f"{server.url}/next.txt") == bytes(700_000)
    assert not list(cache.folder.rglob(".part")), "both together are above the bound"
    assert fetched(cache, f"{server.url}/cut.txt") == bytes(700_000)
    assert sum(path.stat().st_size for path in cache.folder.rglob("*.txt")) == 700_000


def test_abandoned_staging_files_are_removed(cache):
    folder = cache.folder / "stores" / "key" / "train"
    folder.mkdir(parents=True)
    old, fresh = (folder / f".00000.tok.{pid}.staging" for pid in (1, 2))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    with cache.exclusive():
        cache.make_room(1, "a shard")
    assert not old.exists() and fresh.exists()


def test_a_small_file_above_the_limit_is_not_read(server, cache):
    (server.root / "manifest.json").write_bytes(bytes(3_000_000))
    with pytest.raises(DataError, match="far too long") as caught:
        cache.read_small(f"{server.url}/manifest.json", 1000)
    assert "3000000" in caught.value.got and server.sent <= 1
    server.ranges = False  # and where the first answer has the whole file
    with pytest.raises(DataError, match="far too long"):
        cache.read_small(f"{server.url}/manifest.json", 1000)


def test_bytes_from_a_wrong_offset_are_discarded(server, cache):
    content = bytes(range(256)) * 2000
    (server.root / "x.txt").write_bytes(content)
    server.faults["x.txt"] = [("pass",), ("cut", 100_000), ("from", 100_100), ("from", 0)]
    assert fetched(cache, f"{server.url}/x.txt") == content
