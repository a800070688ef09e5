"""Check the target of an export (new, empty, or an earlier export without other files), and put the
finished folder there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.files import files_below, nearest_existing, read_object, rename_durably

MARK = "wikillm_export.json"


def check_target(target: Path) -> None:
    """Raises ConfigError if the export would overwrite other files, MachineError if the folder is
    not writable."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target} exists and is not a folder.", fix="--to another folder")
    if target.exists() and any(target.iterdir()):
        foreign = _foreign_files(target)
        if foreign is None:
            what = f"{target} is neither empty nor an earlier export."
            raise ConfigError(what, fix="--to another folder")
        if foreign:
            raise ConfigError(
                f"{target} is an earlier export with other files, which would be lost.",
                got=", ".join(foreign[:5]),
                fix="--to another folder, or move these files away",
            )
    parent = nearest_existing(target)
    if not os.access(parent, os.W_OK | os.X_OK):
        what = f"{target} cannot be written."
        raise MachineError(what, got=f"no permission in {parent}", fix="--to another folder")


def _foreign_files(target: Path) -> list[str] | None:
    """Files in the folder that no export wrote; None if the folder is not an export."""
    listed = read_object(target / MARK).get("files")
    if not isinstance(listed, dict):
        return None
    present = {path.relative_to(target).as_posix() for path in files_below(target)}
    return sorted(present - set(listed) - {MARK})


def replace_target(target: Path, staging: Path) -> None:
    """Rename the finished folder. An earlier export is moved aside before, and removed after."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.earlier")
    is_replaced = target.exists()
    if is_replaced:
        rename_durably(target, aside)
    try:
        rename_durably(staging, target)
    except OSError:
        if is_replaced:
            rename_durably(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
