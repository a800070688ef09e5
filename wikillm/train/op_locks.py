"""Removes the lock files of killed builds of DeepSpeed's ops, for which the next build would wait.

torch creates `<op>/lock` while it compiles or loads an op, and keeps it open. On a local disk a
lock file that no process has open has no owner. On a shared disk the owner may be on another node,
so the lock counts as stale only after a long time without any change in its folder.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from wikillm.core.files import file_system_kind, is_network_kind
from wikillm.core.lock import is_open_here
from wikillm.core.log import logger

_LOCAL_IDLE_SECONDS = 2.0  # much longer than the time between creating a lock and opening it
_NETWORK_IDLE_SECONDS = 600.0  # a running build writes to a file more often than this


def remove_stale_locks() -> None:
    """Remove every lock without an owner from the folder of compiled ops. (local rank 0)"""
    from torch.utils import cpp_extension  # slow to import

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    for lock in root.glob("**/lock"):
        with suppress(OSError):
            if _is_stale(lock):
                logger.warning("removing %s, left by a build that was killed", lock)
                lock.unlink(missing_ok=True)


def _is_stale(lock: Path) -> bool:
    is_shared = is_network_kind(file_system_kind(lock.parent))
    idle_seconds = _NETWORK_IDLE_SECONDS if is_shared else _LOCAL_IDLE_SECONDS
    newest = 0.0
    for path in lock.parent.iterdir():
        with suppress(FileNotFoundError):  # a running build renames files
            newest = max(newest, path.stat().st_mtime)
    return time.time() - newest > idle_seconds and not is_open_here(lock)
