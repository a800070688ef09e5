"""What DeepSpeed's ops are compiled with, where they are kept, and locks that a killed compilation left there."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import time
from pathlib import Path

from wikillm.core.files import nearest_existing
from wikillm.core.lock import is_open_here
from wikillm.doctor.facts import Compiler, OpLock
from wikillm.doctor.gather.command import ask, read


def gather_compiler() -> Compiler:
    cxx = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or (f"{home}/bin/nvcc" if Path(home, "bin/nvcc").is_file() else "")
    release = re.search(r"release ([\d.]+)", ask(nvcc, "--version").text) if nvcc else None
    folder = extensions_folder()
    existing = folder if folder.is_dir() else nearest_existing(folder)
    return Compiler(
        cxx=cxx,
        cxx_version=ask(cxx, "-dumpfullversion").text.strip() if cxx else "",
        has_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        ninja=shutil.which(
            "ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        )
        or "",
        nvcc=nvcc,
        nvcc_cuda=release[1] if release else "",
        folder=str(folder),
        is_writable=os.access(existing, os.W_OK | os.X_OK),
        is_executable=not _is_noexec(existing),
        locks=tuple(find_locks(folder)),
    )


def extensions_folder() -> Path:
    """Where torch keeps compiled extensions: TORCH_EXTENSIONS_DIR, or the user's cache."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "torch_extensions"


def find_locks(folder: Path) -> list[OpLock]:
    """torch's lock is a file named `lock` beside what is built; its owner holds it open."""
    if not folder.is_dir():
        return []
    locks = []
    for path in sorted(folder.glob("**/lock")):
        try:
            newest = max(each.stat().st_mtime for each in path.parent.iterdir())
        except OSError:
            continue
        locks.append(OpLock(str(path), max(0.0, time.time() - newest), is_open_here(path)))
    return locks


def _is_noexec(folder: Path) -> bool:
    best, options = "", ""
    wanted = str(folder.resolve())
    for line in read("/proc/mounts").splitlines():
        _, mount, _, found, *_ = line.split()
        if (wanted == mount or wanted.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(
            best
        ):
            best, options = mount, found
    return "noexec" in options.split(",")
