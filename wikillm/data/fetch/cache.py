"""A bounded folder of complete remote files; the least recently used are removed first.

    CACHE/files/KEY/NAME     a file; KEY is a hash of its address, NAME is its own name, which shows
        the format
    CACHE/files/KEY/.json    address (without query), size, version (ETag), sha256
    CACHE/files/KEY/.part    an interrupted download; it resumes at its end
    CACHE/stores/KEY/...     prepared stores that are read remotely, shard by shard
        (`remote_store.py`)

One process at a time downloads into a cache; the others wait and find the file. A file is used
while the server reports the downloaded version (or size, if it reports no version). When the server
cannot be reached, the local file is used, with a warning. Interrupted downloads count towards the
bound. A process that needs room may remove a file that another is reading: that build ends with an
error, and resumes when it is started again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from wikillm.core.errors import DataError, MachineError
from wikillm.core.files import (
    STAGING_SUFFIX,
    fsync_path,
    nearest_existing,
    read_object,
    rename_durably,
    sha256_file,
    write_json,
)
from wikillm.core.log import logger, say, warn
from wikillm.core.units import format_seconds, format_size
from wikillm.data.fetch import remote
from wikillm.data.fetch.remote import RemoteFile, Unreachable, without_secrets
from wikillm.data.workers.exclusive import exclusive

ATTEMPTS = 6  # consecutive attempts without a new byte after which a download fails
BACKOFF_SECONDS = 0.5  # doubles with each attempt: 0.5, 1, 2, 4, 8
Answer = TypeVar("Answer")
_SPARE_BYTES = 64 << 20  # free bytes to leave on the disk
_PART = ".part"
_ABANDONED_SECONDS = 3600.0  # a part that got no byte for so long was left by a killed process


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on this machine. `url` and `version` (ETag or revision) are empty for a local file."""

    path: Path
    url: str = ""
    version: str = ""


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """A folder of remote files that holds at most `limit` bytes; None allows the whole disk."""

    def __init__(self, folder: str | None = None, limit: int | None = None) -> None:
        cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(os.path.expanduser(folder or f"{cache_home}/wikillm/remote"))
        self.limit = limit

    @contextmanager
    def exclusive(self, is_main: bool = False, about: str = "") -> Iterator[float]:
        """Hold the lock of the cache; yields the Unix time at which the lock was requested.

        `about` names the request, such as an address: a failure is passed on only to processes that
        waited for the same request.
        """
        asked = time.time()
        base = self.folder / ".cache"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive(base, "fetching remote files", is_main, key_of(about)):
                yield asked
        except PermissionError as error:
            raise MachineError(
                "The cache for remote files cannot be written.",
                got=f"{error.filename}: {error.strerror}",
                fix="set data.cache to a folder that can be written",
            ) from None

    def entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, file) for each data file and part, the least recently used first."""
        found = []
        for pattern in ("files/*/*", "stores/*/train/*", "stores/*/val/*"):
            for path in self.folder.glob(pattern):
                is_hidden = path.name.startswith(".")
                if is_hidden and path.name != _PART and path.suffix != STAGING_SUFFIX:
                    continue
                with suppress(FileNotFoundError):  # another machine shares the folder
                    status = path.stat()
                    # A part was last used when its last byte was written.
                    used = status.st_mtime if is_hidden else status.st_atime
                    found.append((used, status.st_size, path))
        return sorted(found)

    def make_room(self, need: int, what: str, keep: Collection[Path] = ()) -> None:
        """Remove the least recently used files until `need` bytes fit; MachineError if they cannot.

        `what` names the file to be stored, for the error; the files in `keep` are not removed.
        """
        # Remove the parts that killed processes left; list the other files.
        entries = []
        for used, size, path in self.entries():
            if path.suffix != STAGING_SUFFIX:
                entries.append((size, path))
            elif used < time.time() - _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        # Refuse a file that would not fit even if all others were removed.
        held = sum(size for size, _ in entries)
        kept = sum(size for size, path in entries if path in keep)
        if self.limit is not None and kept + need > self.limit:
            raise MachineError(
                "The cache for remote files is too small (data.cache_bytes).",
                got=f"{what}: {format_size(kept + need)} are needed at once, "
                f"{format_size(self.limit)} are allowed in {self.folder}",
                fix=f"data.cache_bytes={kept + need}\n{remote.HOW_WITHOUT}",
            )
        # Remove files until the new file fits into the limit and onto the disk.
        place = self.folder if self.folder.is_dir() else nearest_existing(self.folder)
        for size, path in entries:
            free = shutil.disk_usage(place).free
            if free >= need + _SPARE_BYTES and (self.limit is None or held + need <= self.limit):
                return
            if path not in keep:
                path.unlink(missing_ok=True)
                held -= size
        if (free := shutil.disk_usage(place).free) < need + _SPARE_BYTES:
            raise MachineError(
                "A remote file does not fit on this disk.",
                got=f"{what}: {format_size(need)} are needed in {self.folder}, "
                f"{format_size(free)} are free",
                fix="set data.cache to a folder on a larger disk",
            )

    def fetch(self, url: str, keep: Collection[Path] = (), since: float = 0.0) -> Fetched:
        """The file behind an address, downloaded unless the local copy has the server's version.

        The caller must hold `exclusive`. An entry that was compared with the server after `since`
        (Unix time) is not compared again.
        """
        # A local copy that was compared after `since` is used.
        folder = self.folder / "files" / key_of(url)
        path = folder / remote.file_name(url)
        note = folder / ".json"
        known = read_object(note)
        is_here = path.is_file() and path.stat().st_size == known.get("size")
        if is_here and note.stat().st_mtime >= since > 0:
            return _mark_used(path, url, known)
        # Ask the server for its version; without an answer, the local copy is used.
        try:
            file = _retrying(url, remote.stat)
        except DataError as error:
            if not is_here or not isinstance(error.__cause__, Unreachable):
                raise
            age = time.ctime(path.stat().st_mtime)
            warn(f"{without_secrets(url)} cannot be reached; the file downloaded at {age} is used")
            return _mark_used(path, url, known)
        if is_here and file.version == known.get("version") and file.size in (None, known["size"]):
            os.utime(note)
            return _mark_used(path, url, known)
        # Download the file, and write the note last: a file without its note is downloaded again.
        if is_here:
            say(f"data: {without_secrets(url)} has changed since it was downloaded")
            path.unlink()
        self._download(file, path, keep)
        known = {
            "url": without_secrets(url),
            "size": path.stat().st_size,
            "version": file.version,
            "sha256": sha256_file(path),
        }
        write_json(note, known)
        return _mark_used(path, url, known)

    def files_of(self, entry: str) -> list[str]:
        """The addresses that match an address with a `*` or a trailing `/`. Raises DataError."""
        return _retrying(entry, remote.list_files)

    def read_small(self, url: str, limit: int) -> bytes:
        """The content of a small file, which is not cached.

        Raises DataError when it is longer than `limit` bytes.
        """

        def read(url: str) -> bytes:
            file = remote.stat(url)
            content = bytearray()
            for _, piece in remote.read_from(file, 0) if (file.size or 0) <= limit else ():
                content += piece
                if len(content) > limit:
                    break
            size = max(file.size or 0, len(content))
            if size > limit:
                raise DataError(
                    "A remote file is far too long for what it should be.",
                    got=f"{without_secrets(url)}: {size} bytes or more, at most {limit} are read",
                    fix="check the address: it must be the folder of a token store",
                )
            return bytes(content)

        return _retrying(url, read)

    def download(self, url: str, path: Path, size: int) -> None:
        """Download the file behind an address, of `size` bytes, to `path`. Raises DataError."""
        self._receive(RemoteFile(url, size, ""), path)

    def _download(self, file: RemoteFile, path: Path, keep: Collection[Path]) -> None:
        """Download to `path`; resumes an interrupted download of the same version."""
        # Keep the part of an earlier download if it has the same version and size.
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(_PART)
        mark = path.with_name(f"{_PART}.json")
        wanted = {"version": file.version, "size": file.size}
        if read_object(mark) != wanted or not file.version:
            part.unlink(missing_ok=True)
        write_json(mark, wanted)
        # Receive the missing bytes.
        done = part.stat().st_size if part.exists() else 0
        self.make_room((file.size or 0) - done, without_secrets(file.url), {*keep, part})
        size = "of unknown size" if file.size is None else format_size(file.size)
        resumed = f", from {format_size(done)} on" if done else ""
        say(f"data: downloading {without_secrets(file.url)}, {size}{resumed}")
        start = time.monotonic()
        self._receive(file, part)
        # Refuse a part that may be a mix of two versions, since the file changed meanwhile.
        after = _retrying(file.url, remote.stat)
        if (after.version, after.size) != (file.version, file.size):
            part.unlink(missing_ok=True)
            mark.unlink(missing_ok=True)
            raise DataError(
                "A remote file changed while it was downloaded.",
                got=f"{without_secrets(file.url)}: "
                f"{file.version or '?'}, {file.size} bytes before, "
                f"{after.version or '?'}, {after.size} bytes after",
                fix="start again when it is uploaded; or name an address that does not change, "
                "with a version in it",
            )
        fsync_path(part)
        rename_durably(part, path)
        mark.unlink(missing_ok=True)
        if file.size is None:  # the server did not give the size of the file
            self.make_room(0, without_secrets(file.url), {*keep, path})
        seconds = max(1e-3, time.monotonic() - start)
        say(f"data: downloaded {format_size(path.stat().st_size)} in {format_seconds(seconds)}")

    def _receive(self, file: RemoteFile, part: Path) -> None:
        """Append the missing bytes of the file to `part`, and retry after temporary failures."""
        attempt = 0  # number of attempts since the last new byte
        with open(part, "ab") as out:
            at = out.seek(0, os.SEEK_END)
            farthest = at
            while file.size is None or at < file.size:
                try:
                    for offset, piece in remote.read_from(file, at):
                        if offset != at:  # the server started again from the beginning
                            out.truncate(offset)
                        out.write(piece)
                        at = offset + len(piece)
                        if at > farthest:  # these bytes are new
                            farthest = at
                            attempt = 0
                        if file.size is None and self.limit is not None and at > self.limit:
                            self.make_room(at, without_secrets(file.url))
                    if file.size is None:
                        return
                    if at < file.size:
                        raise Unreachable(f"the answer ended after {at} of {file.size} bytes")
                except Unreachable as error:
                    attempt += 1
                    _wait_or_give_up(attempt, file.url, error)
                except OSError as error:
                    raise MachineError(
                        "A remote file cannot be stored.",
                        got=f"{part}: {error}",
                        fix="set data.cache to a folder with enough free space",
                    ) from None
        if at != file.size:
            part.unlink()
            raise DataError(
                "The size of a remote file differs from the size that its server reported.",
                got=f"{without_secrets(file.url)}: {at} bytes instead of {file.size}",
                fix=f"start again when the file is complete\n{remote.HOW_WITHOUT}",
            )


def _mark_used(path: Path, url: str, note: dict[str, Any]) -> Fetched:
    """The file, marked as used now. Its mtime stays: a prepared store identifies the file by it."""
    modified = path.stat().st_mtime_ns
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), modified))
    return Fetched(path, without_secrets(url), str(note.get("version", "")))


def _retrying(url: str, call: Callable[[str], Answer]) -> Answer:
    """`call(url)`, retried while it raises Unreachable. Raises DataError after the last attempt."""
    attempt = 0
    while True:
        try:
            return call(url)
        except Unreachable as error:
            attempt += 1
            _wait_or_give_up(attempt, url, error)


def _wait_or_give_up(attempt: int, url: str, error: Unreachable) -> None:
    """Wait longer after each attempt. Raises DataError after the last attempt."""
    if attempt >= ATTEMPTS:
        raise DataError(
            "A remote file cannot be reached.",
            got=f"{without_secrets(url)}: {error} ({ATTEMPTS} attempts)",
            fix="check the address and the network; what was downloaded is kept\n"
            f"{remote.HOW_WITHOUT}",
        ) from error
    logger.info("%s: %s; attempt %d of %d", without_secrets(url), error, attempt, ATTEMPTS)
    time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
