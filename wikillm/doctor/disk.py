"""Is there room for what the run writes, and are its sources there?

The digest of a source covers its size and its first and last MiB, which distinguishes two versions
within milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from wikillm.checkpoints.retention import Keep, bytes_freed_at_start
from wikillm.core.errors import WikiLLMError
from wikillm.core.files import file_system_kind, files_below, nearest_existing
from wikillm.core.units import format_size
from wikillm.data.prepare.plan import predicted_store_bytes
from wikillm.data.sources.locate import locate
from wikillm.data.sources.sniff import sniff
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.doctor.checks import Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import DiskFacts, FolderFacts, NodeFacts
from wikillm.doctor.needs import Needs, Request

LEAST_INODES = 10_000
_EDGE = 1 << 20
_LARGER = "run.dir=FOLDER on a larger disk"
_FEWER = f"train.save_total_limit=1, or {_LARGER}"


def gather_disk(request: Request) -> DiskFacts:
    digests: dict[str, str] = {}
    store = Path(request.store_dir).expanduser()
    size = 0
    error = ""
    try:
        paths = locate(request.data_path) if request.has_source else []
        digests = {str(path): quick_digest(path) for path in paths}
        size = predicted_store_bytes([sniff(path) for path in paths])
    except WikiLLMError as refused:
        error = f"{refused.what} {(refused.got or '').partition(chr(10))[0]}".strip()
    except OSError as refused:
        error = f"{refused.filename}: {refused.strerror}"
    kept, freed = inspect_checkpoints(request)
    return DiskFacts(
        run=inspect_folder(Path(request.run_dir)),
        store=inspect_folder(store),
        has_store=(store / MANIFEST_NAME).exists(),
        data=digests,
        data_bytes=size,
        data_error=error,
        checkpoints_stay=kept,
        checkpoints_go=freed,
    )


def inspect_checkpoints(request: Request) -> tuple[int, int]:
    """(bytes of the run's checkpoints that stay, bytes that its start frees)."""
    folder = Path(request.run_dir) / "checkpoints"
    try:
        freed = bytes_freed_at_start(folder, Keep(*request.keep))
        return sum(path.stat().st_size for path in files_below(folder)) - freed, freed
    except OSError:  # a file was removed meanwhile
        return 0, 0


def inspect_folder(path: Path) -> FolderFacts:
    """The file system of `path`, which need not exist."""
    existing = path.absolute() if path.is_dir() else nearest_existing(path)
    stat = os.statvfs(existing)
    return FolderFacts(
        path=str(path),
        existing=str(existing),
        is_writable=os.access(existing, os.W_OK | os.X_OK),
        free=shutil.disk_usage(existing).free,
        inodes_free=stat.f_favail if stat.f_files else None,
        kind=file_system_kind(existing),
    )


def quick_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]


@check("disk", "disk")
def run_folder(facts: NodeFacts, needs: Needs) -> Verdict:
    """The run directory can be written, and lies on a disk that outlives the run."""
    run = facts.disk.run
    if not run.is_writable:
        what = f"{run.existing} cannot be written"
        return fail(what, "checkpoints and logs are stored there", "run.dir=FOLDER")
    if run.inodes_free is not None and run.inodes_free < LEAST_INODES:
        found = f"{run.inodes_free} inodes free on {run.existing}"
        return warn(
            found,
            "no new file can be created, even with free space",
            "remove files there (see df -i)",
        )
    if run.kind in ("tmpfs", "ramfs"):
        why = "a reboot deletes it, and it takes memory"
        return warn(f"{run.existing} is {run.kind}", why, "run.dir=FOLDER on a disk")
    if run.kind == "overlay":
        found = f"{run.existing} is the container's own layer"
        return warn(found, "it is lost with the container", "run.dir=FOLDER on a mounted volume")
    return ok(f"{run.path}, {run.kind or 'unknown kind'}")


@check("disk", "disk")
def checkpoint_room(facts: NodeFacts, needs: Needs) -> Verdict:
    """The checkpoints that are kept fit on the disk."""
    disk = facts.disk
    total = needs.checkpoint * needs.checkpoints_kept - disk.checkpoints_stay
    wanted = max(needs.checkpoint, total)
    free = disk.run.free + disk.checkpoints_go
    found = f"{format_size(disk.run.free)} free on {disk.run.existing}"
    if disk.checkpoints_go:
        freed = format_size(disk.checkpoints_go)
        found += f" and {freed} more after superfluous checkpoints are removed"
    found += f", about {format_size(wanted)} to write for {needs.checkpoints_kept} checkpoints"
    if disk.checkpoints_stay:
        found += f" beside {format_size(disk.checkpoints_stay)} that stay"
    if free < needs.least_checkpoint:
        fix = _FEWER if disk.checkpoints_stay and needs.checkpoints_kept > 3 else _LARGER
        return fail(
            found, f"not one fits: it needs at least {format_size(needs.least_checkpoint)}", fix
        )
    if free < wanted:
        return warn(found, "saving fails when the disk is full", _FEWER)
    return ok(found)


@check("disk", "disk")
def store_room(facts: NodeFacts, needs: Needs) -> Verdict:
    """The token store fits on the disk."""
    disk = facts.disk
    if disk.has_store or not disk.data_bytes:
        return skip("the store exists" if disk.has_store else "no source to estimate it from")
    need = format_size(disk.data_bytes)
    free = format_size(disk.store.free)
    found = f"{free} free on {disk.store.existing}, about {need} for the store"
    if disk.store.free < disk.data_bytes:
        why = "building it stops when the disk is full"
        return warn(found, why, "data.store=FOLDER on a larger disk")
    return ok(found)


@check("run", "disk")
def data_source(facts: NodeFacts, needs: Needs) -> Verdict:
    """The files of data.path are there and readable."""
    disk = facts.disk
    if not disk.data_error and disk.data:
        return ok(f"{len(disk.data)} files")
    if not disk.data_error:
        return skip("data.path names addresses or finished stores, which the doctor does not open")
    if disk.has_store:
        return skip(f"the store exists; {disk.data_error}")
    why = "the token store is built from it"
    return fail(disk.data_error, why, "data.path=FILE, as this node sees it")


@check("run", "disk")
def batch(facts: NodeFacts, needs: Needs) -> Verdict:
    """The batch divides over the processes."""
    found = f"{needs.ranks} processes"
    return fail(found, needs.batch_error) if needs.batch_error else ok(found)
