"""DeepSpeed's compiled op on a machine without GPU: built once, by one process, with a word about it.

DeepSpeed compiles its shared-memory op inside `init_distributed`, on all ranks at once, in silence, and a build
that is killed half-way leaves a lock file that the next run waits for without end. Here it happens before: one
process per machine builds under an flock, the others wait and say for whom, and a lock file without an owner goes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from wikillm.core.errors import MachineError
from wikillm.core.files import NETWORK_KINDS, file_system_kind
from wikillm.core.lock import is_open_here, lock_or_wait
from wikillm.core.log import logger, say
from wikillm.core.units import format_seconds, format_size

SHARED_MEMORY = Path("/dev/shm")
BUFFER_BYTES = 70 * 10**6  # 69,206,024 measured with deepspeed 0.19.8
_LOCAL_PATIENCE = 2.0  # seconds between creating a lock and holding it open, many times over
_NETWORK_PATIENCE = 600.0  # no file of a build in progress stays untouched for so long


def build_cpu_ops() -> None:
    """Compile (or find compiled) what DeepSpeed loads on CPU. Call it before the process group exists. (all ranks)

    Raises:
        MachineError: there is no working C++ compiler.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

    _use_own_folder()
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    folder = Path(cpp_extension._get_build_directory(builder.name, verbose=False))
    if _is_built(folder):
        return
    waited = False

    def on_wait(holder: str, seconds: float) -> None:
        nonlocal waited
        if not waited:
            say(f"compiling DeepSpeed's CPU op, about 40 s, once ({holder} does it)")
        waited = True

    with lock_or_wait(folder.parent / f"{builder.name}.wikillm.lock", on_wait):
        if _is_built(folder):
            return
        _wait_out_foreign_lock(folder)
        if _is_built(folder):
            return
        say("compiling DeepSpeed's CPU op, about 40 s, once ...")
        start = time.monotonic()
        try:
            builder.load(verbose=False)
        except (RuntimeError, OSError) as error:
            raise MachineError(
                "DeepSpeed's CPU op did not compile.",
                got=str(error).splitlines()[0],
                fix="install a C++ compiler and Python's headers: apt-get install g++ python3-dev "
                "(dnf install gcc-c++ python3-devel)",
            ) from error
        say(f"compiled in {format_seconds(time.monotonic() - start)}; kept in {folder}")


def _use_own_folder() -> None:
    """Give each environment its own build, unless the user has named a folder.

    The compiler's flags hold the paths of the environment: two that share a folder rebuild at every change of turns.
    """
    import deepspeed
    import torch
    from torch.utils import cpp_extension

    # Two versions of ninja hash a command differently: each would find the other's build out of date, for ever.
    own = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != own:
        os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])
    what = "\n".join([sys.prefix, torch.__version__, deepspeed.__version__])
    name = f"wikillm-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(cpp_extension.get_default_build_root()) / name))


def check_shared_memory(local_size: int) -> None:
    """DeepSpeed's op puts 66 MiB per rank into /dev/shm and dies with SIGBUS when they do not fit."""
    if not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, local_size * BUFFER_BYTES
    if free < needed:
        raise MachineError(
            f"{SHARED_MEMORY} is too small for {local_size} processes.",
            got=f"{format_size(free)} free, {format_size(needed)} needed by DeepSpeed's op on CPU",
            fix="in a container: --shm-size=1g; otherwise: mount -o remount,size=1g /dev/shm",
        )


def release_shared_memory() -> None:
    """Unlink this rank's buffer once every rank has mapped it. (all ranks, after a barrier)

    DeepSpeed never does, so each run, and each killed one, would keep 66 MiB of RAM per rank until the next boot.
    The mapping stays valid without the name.
    """
    environ = os.environ
    parts = (environ.get("MASTER_ADDR"), environ.get("MASTER_PORT"), environ.get("RANK"))
    name = "_".join(["deepspeed_allreduce_buffer", str(os.getuid()), *map(str, parts)])
    (SHARED_MEMORY / name).unlink(missing_ok=True)


def _is_built(folder: Path) -> bool:
    return any(folder.glob("*.so")) and not (folder / "lock").exists()


def _wait_out_foreign_lock(folder: Path) -> None:
    """Wait while another process builds or loads; remove torch's lock file when its owner is gone.

    torch holds the file open while it owns the lock, so on a local disk a lock that no process has open is nobody's.
    On a shared one the owner may be on another node: there the lock has to be untouched for long.
    """
    lock, patience, said = folder / "lock", _NETWORK_PATIENCE if _is_shared(folder) else _LOCAL_PATIENCE, False
    while lock.exists():
        newest = max((path.stat().st_mtime for path in _present(folder)), default=0.0)
        if not is_open_here(lock) and time.time() - newest > patience:
            logger.warning("removing %s, left by a build that was killed", lock)
            lock.unlink(missing_ok=True)
            return
        if not said:
            say(f"waiting for another process that compiles or loads DeepSpeed's op ({lock})")
            said = True
        time.sleep(0.5)


def _present(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.exists())  # a build renames files while we look


def _is_shared(folder: Path) -> bool:
    """Is the folder on a network file system? Unknown kinds count as local."""
    return file_system_kind(folder).startswith(NETWORK_KINDS)


def use_cpu_accelerator() -> None:
    """Tell DeepSpeed that there is no GPU, before it is imported; otherwise it guesses, with a warning."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
