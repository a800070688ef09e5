"""Room and speed where the run writes, and digests of what it reads.

The digest of a source is of its size and its first and last MiB: enough to tell two versions of a file apart in
milliseconds, whatever its size. Writing is measured with one file of 32 MiB, synced, which is removed again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from wikillm.checkpoints.retention import room_to_come
from wikillm.core.errors import WikiLLMError
from wikillm.core.files import file_system_kind, files_below, nearest_existing
from wikillm.data.prepare.plan import predicted_store_bytes
from wikillm.data.sources.locate import locate
from wikillm.data.sources.sniff import sniff
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.doctor.facts import Disk, Place
from wikillm.doctor.needs import Request

MEASURED_BYTES = 32 << 20
_EDGE = 1 << 20


def gather_disk(request: Request) -> Disk:
    digests: dict[str, str] = {}
    store = Path(request.store_dir).expanduser()
    size, error = 0, ""
    try:
        paths = locate(request.data_path) if request.has_source else []
        digests = {str(path): quick_digest(path) for path in paths}
        size = predicted_store_bytes([sniff(path) for path in paths])
    except WikiLLMError as refused:
        error = (
            f"{refused.what} {(refused.got or '').splitlines()[0] if refused.got else ''}".strip()
        )
    except OSError as refused:
        error = f"{refused.filename}: {refused.strerror}"
    stay, go = look_at_checkpoints(request)
    return Disk(
        run=look_at(Path(request.run_dir), measure=True),
        store=look_at(store, measure=False),
        store_stands=(store / MANIFEST_NAME).exists(),
        temporary=look_at(Path(tempfile.gettempdir()), measure=False),
        data=digests,
        data_bytes=size,
        data_error=error,
        checkpoints_stay=stay,
        checkpoints_go=go,
    )


def look_at_checkpoints(request: Request) -> tuple[int, int]:
    """(bytes of the run's checkpoints that stay, bytes that its start makes free) in the run directory."""
    folder = Path(request.run_dir) / "checkpoints"
    try:
        go = room_to_come(folder, request.checkpoints_kept)
        return sum(path.stat().st_size for path in files_below(folder)) - go, go
    except OSError:  # a file went while it was looked at
        return 0, 0


def look_at(path: Path, *, measure: bool) -> Place:
    """The file system that `path` lies, or would lie, on."""
    existing = path.absolute() if path.is_dir() else nearest_existing(path)
    stat = os.statvfs(existing)
    is_writable = os.access(existing, os.W_OK | os.X_OK)
    free = shutil.disk_usage(existing).free
    return Place(
        path=str(path),
        existing=str(existing),
        is_writable=is_writable,
        free=free,
        inodes_free=stat.f_favail if stat.f_files else None,
        kind=file_system_kind(existing),
        bytes_per_second=write_speed(existing)
        if measure and is_writable and free > 4 * MEASURED_BYTES
        else None,
    )


def write_speed(folder: Path) -> float | None:
    """Bytes per second of one synced file; None when it cannot be written."""
    block = os.urandom(1 << 20)  # not zeros: some file systems store none of those
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".wikillm-doctor-") as file:
            start = time.monotonic()
            for _ in range(MEASURED_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return MEASURED_BYTES / (time.monotonic() - start)
    except OSError:
        return None


def quick_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]
