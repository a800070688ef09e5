"""Checks the compilers of the parts of a run that are compiled; most runs compile nothing."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from packaging.version import Version

from wikillm.core.files import nearest_existing
from wikillm.doctor.checks import Finding, check, fail, ok, skip
from wikillm.doctor.gpus import count_gpus
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import run_tool
from wikillm.doctor.software import torch_cuda


def _for_cuda() -> bool:
    """Whether the run's ranks use GPUs here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return bool(torch_cuda() and count_gpus() and visible not in ("", "-1"))


def _ops(needs: Needs) -> tuple[str, ...]:
    """The ops of DeepSpeed that the run compiles here: none on a CPU."""
    return needs.gpu_ops if _for_cuda() else ()


@check("compiler")
def toolchain(needs: Needs) -> Finding:
    """The compiler and headers that this run needs are installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    cxx = _first("CXX", "c++", "g++", "clang++")
    found = {
        "C++": cxx,
        "C": _first("CC", "cc", "gcc", "clang"),
        "Python.h": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "ninja": shutil.which("ninja", path=path),
    }
    missing = [name for name, there in found.items() if not there]
    if not missing:
        return ok(f"{cxx}, {found['ninja']}")
    # Each part of a run that compiles, with the tools that it calls.
    parts = []
    new_ops = [op for op in _ops(needs) if not list(_op_folder().glob(f"*/{op}/{op}.so"))]
    if new_ops:
        parts.append((f"DeepSpeed compiles {', '.join(new_ops)}", {"C++", "Python.h", "ninja"}))
    if needs.compiles and not _for_cuda():
        parts.append(("torch.compile generates C++", {"C++", "Python.h"}))
    if needs.uses_triton and _for_cuda():
        parts.append(("Triton compiles its launchers in C", {"C", "Python.h"}))
    for why, tools in parts:
        if lacking := [name for name in missing if name in tools]:
            fix = "apt-get install g++ python3-dev (dnf: gcc-c++ python3-devel); pip install ninja"
            return fail(f"missing: {', '.join(lacking)}", why, fix)
    return skip(f"not installed and not needed: {', '.join(missing)}")


def _first(variable: str, *names: str) -> str | None:
    """The compiler that `variable` names, with or without arguments; else the first of `names`."""
    asked = os.environ.get(variable, "").split()[:1]
    return next((found for name in asked or names if (found := shutil.which(name))), None)


@check("compiler")
def nvcc(needs: Needs) -> Finding:
    """The CUDA toolkit fits torch if DeepSpeed compiles an op."""
    wheel = torch_cuda()
    ops = _ops(needs)
    if not wheel or not ops:
        return skip("nothing is compiled for CUDA")
    fix = f"install the CUDA {wheel} toolkit and set CUDA_HOME"
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    tool = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if not tool:
        return fail("no nvcc", f"DeepSpeed compiles {', '.join(ops)} with it", fix)
    release = re.search(r"release ([\d.]+)", run_tool(tool, "--version")[0])
    found = f"nvcc {release[1] if release else '?'}, torch for CUDA {wheel}"
    if release and Version(release[1]).major != Version(wheel).major:
        return fail(found, "DeepSpeed refuses another major version", fix)
    return ok(found)


@check("compiler")
def op_folder(needs: Needs) -> Finding:
    """A compiled op of DeepSpeed can be stored and loaded."""
    if not _ops(needs):
        return skip("no op of DeepSpeed is compiled")
    folder = _op_folder()
    existing = folder if folder.is_dir() else nearest_existing(folder)
    fix = "export TORCH_EXTENSIONS_DIR=FOLDER"
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(f"{folder} cannot be written", "compiled ops are stored there", fix)
    if os.statvfs(existing).f_flag & os.ST_NOEXEC:
        return fail(f"{folder} is mounted noexec", "compiled ops cannot be loaded", fix)
    return ok(str(folder))


def _op_folder() -> Path:
    """Where torch's C++ extensions are built, as torch chooses it."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
