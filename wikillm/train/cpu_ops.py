"""Build DeepSpeed's shared-memory op for CPUs, remove stale locks of it, and check /dev/shm.

DeepSpeed compiles the op inside `init_distributed`, silently and on all ranks at once. A killed
build leaves a lock file, for which the next run waits without end. So the op is built before
`init_distributed`: one process per machine builds under an flock, the others wait and log the
builder, and lock files of killed builds are removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from wikillm.core.errors import MachineError
from wikillm.core.faults import as_refusal
from wikillm.core.files import file_system_kind, is_network_kind
from wikillm.core.lock import is_in_use, is_open_here, lock_or_wait
from wikillm.core.log import logger, say
from wikillm.core.units import format_seconds, format_size

SHARED_MEMORY = Path("/dev/shm")
BUFFER_BYTES = 70 * 10**6  # 69,206,024 measured with deepspeed 0.19.8
_BUFFER = "deepspeed_allreduce_buffer"
"""Prefix of the buffers' file names; user, MASTER_ADDR, MASTER_PORT and rank follow
(csrc/cpu/comm/shm.cpp)."""
_JUST_MADE = 5.0  # seconds after which the ranks of a start have opened each other's buffers
_LOCAL_IDLE_SECONDS = 2.0  # much longer than the time between creating a lock and opening it
_NETWORK_IDLE_SECONDS = 600.0  # a running build writes to a file more often than this


def build_cpu_op() -> None:
    """Compile DeepSpeed's op if needed, before the process group exists. (all ranks)

    Raises:
        MachineError: no working C++ compiler, or the folder of compiled ops cannot be written.
    """
    from deepspeed.accelerator import get_accelerator

    _use_own_folder()
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    try:
        _build(builder)
    except OSError as error:
        folder = os.environ["TORCH_EXTENSIONS_DIR"]
        raise MachineError(
            f"DeepSpeed's CPU op cannot be compiled in {folder}.",
            got=f"{error.filename or folder}: {error.strerror or error}",
            fix="name a writable folder with free space: export TORCH_EXTENSIONS_DIR=FOLDER",
        ) from error


def _build(builder: Any) -> None:
    """Compile in one process of the machine while the others wait.

    Raises OSError or MachineError.
    """
    from torch.utils import cpp_extension

    folder = Path(cpp_extension._get_build_directory(builder.name, verbose=False))
    if _is_built(folder):
        return
    waited = False

    def on_wait(holder: str, seconds: float) -> None:
        nonlocal waited
        if not waited:
            say(f"compiling DeepSpeed's CPU op, about 40 s, once ({holder} does it)")
        waited = True

    # An flock ends with its holder; torch's lock file does not.
    with lock_or_wait(folder.parent / f"{builder.name}.wikillm.lock", on_wait):
        _wait_for_other_builder(folder)
        if _is_built(folder):
            return
        say("compiling DeepSpeed's CPU op, about 40 s, once ...")
        start = time.monotonic()
        try:
            builder.load(verbose=False)
        except RuntimeError as error:
            if (refusal := as_refusal(error)) is not None:
                raise refusal from error
            raise MachineError(
                "DeepSpeed's CPU op did not compile.",
                got=str(error).splitlines()[0],
                fix="install a C++ compiler and Python's headers: apt-get install g++ python3-dev "
                "(dnf install gcc-c++ python3-devel)",
            ) from error
        say(f"compiled in {format_seconds(time.monotonic() - start)}; kept in {folder}")


def _use_own_folder() -> None:
    """Give each environment its own build, unless the user has named a folder.

    The compiler flags contain the environment's paths, so two environments that share a folder
    would rebuild the op whenever the other one was used last.
    """
    import deepspeed
    import torch
    from torch.utils import cpp_extension

    # This environment's ninja comes first: another version hashes commands differently and would
    # rebuild the op.
    own_bin = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != own_bin:
        os.environ["PATH"] = os.pathsep.join([own_bin, os.environ.get("PATH", os.defpath)])
    versions = "\n".join([sys.prefix, torch.__version__, deepspeed.__version__])
    name = f"wikillm-{hashlib.sha256(versions.encode()).hexdigest()[:8]}"
    if not os.environ.get("TORCH_EXTENSIONS_DIR"):  # an empty value would mean the current folder
        root = Path(cpp_extension.get_default_build_root())
        os.environ["TORCH_EXTENSIONS_DIR"] = str(root / name)


def sweep_shared_memory(folder: Path = SHARED_MEMORY) -> None:
    """Remove this user's buffers of killed runs, which no process has open or mapped.

    Another container may share the folder with processes that are not visible here, so buffers that
    are only seconds old stay. (local rank 0)
    """
    for path in folder.glob(f"{_BUFFER}_{os.getuid()}_*"):
        with suppress(OSError):
            status = path.lstat()
            is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
            if is_ours and time.time() - status.st_mtime > _JUST_MADE and not is_in_use(path):
                path.unlink()
                size = format_size(status.st_size)
                logger.warning("removed %s (%s), left by a run that was killed", path, size)


def check_shared_memory(local_size: int) -> None:
    """Raise MachineError when the op's 66 MiB per rank do not fit: the op would die with SIGBUS."""
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = local_size * BUFFER_BYTES
    if free < needed:
        raise MachineError(
            f"{SHARED_MEMORY} is too small for {local_size} processes.",
            got=f"{format_size(free)} free, {format_size(needed)} needed by DeepSpeed's op on CPU",
            fix="in a container: --shm-size=1g; otherwise: mount -o remount,size=1g /dev/shm",
        )


def release_shared_memory() -> None:
    """Unlink this rank's buffer once every rank has mapped it. (all ranks, after a barrier)

    DeepSpeed never unlinks it, so each run would keep 66 MiB of RAM per rank until the next boot.
    The mapping stays valid without the file.
    """
    parts = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "RANK")]
    name = "_".join([_BUFFER, str(os.getuid()), *map(str, parts)])
    (SHARED_MEMORY / name).unlink(missing_ok=True)


def _is_built(folder: Path) -> bool:
    return any(folder.glob("*.so")) and not (folder / "lock").exists()


def _wait_for_other_builder(folder: Path) -> None:
    """Wait while another process builds or loads; remove torch's lock file when its owner is gone.

    torch keeps the file open while it owns the lock, so on a local disk a lock file that no process
    has open has no owner. On a shared disk the owner may be on another node, so the lock counts as
    stale only after a long time without any change in its folder.
    """
    lock = folder / "lock"
    logged = False
    while lock.exists() and not _remove_if_stale(lock):
        if not logged:
            say(f"waiting for another process that compiles or loads DeepSpeed's op ({lock})")
            logged = True
        time.sleep(0.5)


def sweep_op_locks() -> None:
    """Remove the locks of killed builds of any op: DeepSpeed would wait for them. (local rank 0)"""
    from torch.utils import cpp_extension

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    for lock in root.glob("**/lock"):
        with suppress(OSError):
            _remove_if_stale(lock)


def _remove_if_stale(lock: Path) -> bool:
    """Remove the lock if it has no owner; returns whether it was removed."""
    folder = lock.parent
    is_shared = is_network_kind(file_system_kind(folder))
    idle_seconds = _NETWORK_IDLE_SECONDS if is_shared else _LOCAL_IDLE_SECONDS
    newest = 0.0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # a running build renames files
            newest = max(newest, path.stat().st_mtime)
    if is_open_here(lock) or time.time() - newest <= idle_seconds:
        return False
    logger.warning("removing %s, left by a build that was killed", lock)
    lock.unlink(missing_ok=True)
    return True
