"""A prepared token store on a server (http, s3, oss), read through a bounded cache on this machine.

Opening a store fetches its manifest and tokenizer. A shard is fetched when it is first read,
compared with the sha256 in the manifest, and kept until its room is needed (`fetch.cache`). So the
batches equal those of a local copy. The first epoch reads window after window, and a cache of one
window is enough. Later epochs permute all samples and are fast only if the cache holds the whole
store; a smaller cache gives a warning.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.errors import DataError
from wikillm.core.files import STAGING_SUFFIX, fsync_path, rename_durably, sha256_file, write_atomic
from wikillm.core.log import logger, say, warn
from wikillm.core.units import format_size
from wikillm.data.fetch.cache import Cache, key_of
from wikillm.data.fetch.remote import HOW_WITHOUT, check_address, without_secrets
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest
from wikillm.data.store.store import SPLITS, Store, TokenStream, shard_files

_MAX_MANIFEST_BYTES = 1 << 30
_MAX_TOKENIZER_BYTES = 64 << 20
_COPY_AGAIN = "upload the store again; `wikillm data verify` checks the local copy first"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class RemoteShards:
    """The shard files of the store at `url`, which `ensure` fetches into `folder`. Picklable."""

    url: str
    folder: Path
    cache: Cache
    files: dict[str, tuple[int, str]]  # path relative to the store -> size and sha256

    def ensure(self, path: Path) -> None:
        """Fetch a shard file unless it exists.

        Raises DataError when the file cannot be fetched, or has another sha256 than the manifest.
        """
        if _touch(path):
            return
        name = path.relative_to(self.folder).as_posix()
        size, digest = self.files[name]
        with self.cache.exclusive(about=f"{self.url}/{name}"):
            if _touch(path):  # another process has fetched it
                return
            self.cache.make_room(size, f"{without_secrets(self.url)}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_name(f".{path.name}.{os.getpid()}{STAGING_SUFFIX}")
            start = time.monotonic()
            try:
                self.cache.download(f"{self.url}/{name}", staged, size)
                if sha256_file(staged) != digest:
                    raise DataError(
                        "A shard of a remote store does not have the sha256 in its manifest.",
                        got=f"{without_secrets(self.url)}/{name}",
                        fix=f"{_COPY_AGAIN}\n{HOW_WITHOUT}",
                    )
                fsync_path(staged)
                rename_durably(staged, path)
            finally:
                staged.unlink(missing_ok=True)
            seconds = time.monotonic() - start
            fetched = f"{without_secrets(self.url)}/{name}, {format_size(size)}"
            logger.info(f"fetched {fetched} in {seconds:.1f} s")


def open_remote(url: str, cache: Cache, *, is_main: bool = True) -> Store:
    """Open the store at an address. (all ranks)

    Raises DataError when there is no store at `url`, or the server cannot be reached.
    """
    # Fetch the manifest and the tokenizer into a folder named by address and manifest.
    check_address(url)
    url = url.rstrip("/")
    with cache.exclusive(is_main, url) as requested_at:
        content = _manifest(url, cache, requested_at)
        folder = cache.folder / "stores" / key_of(f"{url}\n{hashlib.sha256(content).hexdigest()}")
        try:
            manifest = Manifest.parse(content)
        except ValueError as error:
            raise DataError(
                "This is not the manifest of a token store.",
                got=f"{without_secrets(url)}/{MANIFEST_NAME}: {error}",
                fix="set data.store to the address of the folder that holds manifest.json",
            ) from None
        _fetch_tokenizer(url, folder, manifest, cache)
    # The shards are fetched when they are read.
    files = {
        name: (size, digest)
        for shard in manifest.shards
        for name, size, digest in shard_files(shard)
    }
    ensure = RemoteShards(url, folder, cache, files).ensure
    length = manifest.tokenizer.length
    train, val = (TokenStream(folder, split, manifest.shards, ensure, length) for split in SPLITS)
    if is_main:
        total = sum(size for size, _ in files.values())
        place = f"data: the store at {without_secrets(url)}, {format_size(total)}"
        say(f"{place}, is read through the cache {cache.folder}")
        if cache.limit is not None and cache.limit < total:
            warn(
                f"data.cache_bytes={cache.limit} is less than the store ({total} bytes): "
                "the first epoch is fast if the cache holds a window; "
                "later epochs mix all shards and will fetch them again and again"
            )
    return Store(folder, manifest, train, val)


def _manifest(url: str, cache: Cache, requested_at: float) -> bytes:
    """The manifest on the server, or its cached copy when the server cannot be reached.

    One rank reads it from the server. The other ranks, which requested the lock at `requested_at`
    (Unix time), use the copy that this rank wrote. So all ranks open the same store.
    """
    copy = cache.folder / "stores" / f"{key_of(url)}.json"
    with suppress(OSError):
        if copy.stat().st_mtime >= requested_at:
            return copy.read_bytes()
    try:
        content = cache.read_small(f"{url}/{MANIFEST_NAME}", _MAX_MANIFEST_BYTES)
    except DataError as error:
        if copy.is_file() and "cannot be reached" in error.what:
            warn(f"{without_secrets(url)} cannot be reached; the store is read from the cache")
            with suppress(OSError):
                os.utime(copy)  # so that the waiting ranks do not try again
            return copy.read_bytes()
        raise
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(copy, content)
    return content


def _fetch_tokenizer(url: str, folder: Path, manifest: Manifest, cache: Cache) -> None:
    target = folder / "tokenizer"
    path = target / "tokenizer.json"
    if path.is_file() and sha256_file(path) == manifest.tokenizer.sha256:
        return
    target.mkdir(parents=True, exist_ok=True)
    contents = {
        name: cache.read_small(f"{url}/tokenizer/{name}", _MAX_TOKENIZER_BYTES)
        for name in _TOKENIZER_FILES
    }
    if hashlib.sha256(contents[path.name]).hexdigest() != manifest.tokenizer.sha256:
        raise DataError(
            "The tokenizer of a remote store does not have the sha256 in its manifest.",
            got=f"{without_secrets(url)}/tokenizer/tokenizer.json",
            fix=_COPY_AGAIN,
        )
    for name in reversed(_TOKENIZER_FILES):  # tokenizer.json last: the folder is then complete
        write_atomic(target / name, contents[name])


def _touch(path: Path) -> bool:
    """Set the access time to now, so that the cache keeps the file. False if it does not exist."""
    with suppress(OSError):
        status = path.stat()
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return True
    return False
