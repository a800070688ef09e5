"""DeepSpeed's compiled op on a machine without GPU: built once, by one process, with a word about it.

DeepSpeed compiles its shared-memory op inside `init_distributed`, on all ranks at once, in silence, and a build
that is killed half-way leaves a lock file that the next run waits for without end. Here it happens before: one
process per machine builds under an flock, the others wait and say for whom, and a lock file without an owner goes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from wikillm.core.errors import MachineError
from wikillm.core.lock import lock_or_wait
from wikillm.core.log import logger, say
from wikillm.core.units import format_seconds

_ABANDONED_SECONDS = 300.0  # no file of a build in progress stays untouched for so long


def build_cpu_ops() -> None:
    """Compile (or find compiled) what DeepSpeed loads on CPU. Call it before the process group exists. (all ranks)

    Raises:
        MachineError: there is no working C++ compiler.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

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
            logger.info("waiting for %s, which compiles DeepSpeed's op", holder)
        waited = True

    with lock_or_wait(folder.parent / f"{builder.name}.wikillm.lock", on_wait):
        if _is_built(folder):
            return
        _drop_abandoned_lock(folder)
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


def _is_built(folder: Path) -> bool:
    return any(folder.glob("*.so")) and not (folder / "lock").exists()


def _drop_abandoned_lock(folder: Path) -> None:
    """Remove torch's lock file when nothing in the folder has changed for long: its build was killed."""
    lock = folder / "lock"
    if not lock.exists():
        return
    newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
    if time.time() - newest > _ABANDONED_SECONDS:
        lock.unlink(missing_ok=True)
    else:
        say(f"waiting for another build in {folder} (pid file {lock}); remove it if none is running")


def use_cpu_accelerator() -> None:
    """Tell DeepSpeed that there is no GPU, before it is imported; otherwise it guesses, with a warning."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
