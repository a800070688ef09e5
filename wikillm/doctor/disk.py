"""Checks the space for the files of the run, and whether its sources can be read.

The digest of a source covers its size and its first and last MiB. This takes milliseconds, and
distinguishes two versions of a source.
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
from wikillm.data.sources.locate import locate
from wikillm.data.sources.sniff import sniff
from wikillm.data.types import SourceFile
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.needs import Needs

MIN_INODES = 10_000
_EDGE = 1 << 20
_LARGER = "run.dir=FOLDER on a larger disk"
_FEWER = f"train.save_total_limit=1, or {_LARGER}"


def existing_folder(folder: str) -> Path:
    """`folder`, or its deepest parent that exists."""
    path = Path(folder)
    return path.absolute() if path.is_dir() else nearest_existing(path)


@check("disk")
def run_folder(needs: Needs) -> Finding:
    """The run directory can be written, and lies on a disk that outlives the run."""
    run = Path(needs.run_dir)
    folder = existing_folder(needs.run_dir)
    why = "checkpoints and logs are stored there"
    if run.exists() and not run.is_dir():
        return fail(f"{run} is not a folder", why, "run.dir=FOLDER")
    if not os.access(folder, os.W_OK | os.X_OK):
        return fail(f"{folder} cannot be written", why, "run.dir=FOLDER")
    stat = os.statvfs(folder)
    if stat.f_files and stat.f_favail < MIN_INODES:
        found = f"{stat.f_favail} inodes free on {folder}"
        why = "no new file can be created, even with free space"
        return warn(found, why, "remove files there (see df -i)")
    kind = file_system_kind(folder)
    if kind in ("tmpfs", "ramfs"):
        why = "a reboot deletes it, and it takes memory"
        return warn(f"{folder} is {kind}", why, "run.dir=FOLDER on a disk")
    if kind == "overlay":
        found = f"{folder} is the container's own layer"
        return warn(found, "it is lost with the container", "run.dir=FOLDER on a mounted volume")
    return ok(f"{needs.run_dir}, {kind or 'unknown kind'}")


@check("disk")
def checkpoint_room(needs: Needs) -> Finding:
    """The checkpoints that are kept fit on the disk."""
    folder = existing_folder(needs.run_dir)
    free = shutil.disk_usage(folder).free
    staying, freed = _existing_checkpoints(needs)
    wanted = max(needs.checkpoint, needs.checkpoint * needs.checkpoints_kept - staying)
    found = f"{format_size(free)} free on {folder}"
    if freed:
        found += f" and {format_size(freed)} more after superfluous checkpoints are removed"
    found += f", about {format_size(wanted)} to write for {needs.checkpoints_kept} checkpoints"
    if staying:
        found += f" beside {format_size(staying)} that stay"
    if free + freed < needs.least_checkpoint:
        why = f"a single checkpoint needs at least {format_size(needs.least_checkpoint)}"
        return fail(found, why, _FEWER if staying and needs.checkpoints_kept > 3 else _LARGER)
    if free + freed < wanted:
        return warn(found, "a save fails when the disk is full", _FEWER)
    return ok(found)


def _existing_checkpoints(needs: Needs) -> tuple[int, int]:
    """(bytes of checkpoints that stay, bytes of checkpoints that the start of the run removes)."""
    folder = Path(needs.run_dir) / "checkpoints"
    try:
        freed = bytes_freed_at_start(folder, Keep(*needs.keep))
        return sum(path.stat().st_size for path in files_below(folder)) - freed, freed
    except OSError:  # a file was removed meanwhile
        return 0, 0


@check("run")
def data_source(needs: Needs) -> Finding:
    """The files of data.path can be read, and their token store fits on the disk."""
    from wikillm.data.prepare.plan import predicted_store_bytes
    from wikillm.data.store.manifest import MANIFEST_NAME

    sources, error = find_sources(needs)
    has_store = Path(needs.store_dir, MANIFEST_NAME).exists()
    if error and not has_store:
        why = "the token store is built from it"
        return fail(error, why, "data.path=FILE, as this node sees it")
    if not sources:
        addresses = "data.path names addresses or finished stores, which the doctor does not open"
        return skip(f"the store exists; {error}" if error else addresses)
    if has_store:
        return ok(f"{len(sources)} files; the store exists")
    folder = existing_folder(needs.store_dir)
    size = predicted_store_bytes(sources)
    free = shutil.disk_usage(folder).free
    found = f"{len(sources)} files, about {format_size(size)} for the store"
    found += f", {format_size(free)} free on {folder}"
    if free < size:
        why = "building the store stops when the disk is full"
        return warn(found, why, "data.store=FOLDER on a larger disk")
    return ok(found)


@check("run")
def batch(needs: Needs) -> Finding:
    """The batch divides over the processes."""
    found = f"{needs.ranks} processes"
    return fail(found, needs.batch_error) if needs.batch_error else ok(found)


def find_sources(needs: Needs) -> tuple[list[SourceFile], str]:
    """(the source files, why a file cannot be read or "")."""
    try:
        paths = locate(needs.data_path) if needs.has_source else []
        return [sniff(path, needs.data_format, needs.text_key) for path in paths], ""
    except WikiLLMError as refused:
        return [], f"{refused.what} {(refused.got or '').partition(chr(10))[0]}".strip()
    except OSError as refused:
        return [], f"{refused.filename}: {refused.strerror}"


def digest_of_sources(needs: Needs) -> str:
    """One digest of all source files, "" without a source file."""
    sources, _ = find_sources(needs)
    digests = "-".join(sorted({quick_digest(Path(source.path)) for source in sources}))
    return f"{len(sources)} files, {digests[:33]}" if sources else ""


def quick_digest(path: Path) -> str:
    """The digest of one source; see above for what it covers."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]
