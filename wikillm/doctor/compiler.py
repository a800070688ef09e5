"""Checks whether DeepSpeed's ops can be compiled, stored and loaded."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from packaging.version import Version

from wikillm.core.files import nearest_existing
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.gpus import count_gpus
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import run_tool
from wikillm.doctor.software import torch_cuda


def _problem(needs: Needs, found: str, why: str, fix: str) -> Finding:
    """A failure if the run compiles an op, as the optimizer of an offload is; else a warning."""
    return fail(found, why, fix) if needs.offload else warn(found, why, fix)


@check("compiler")
def toolchain(needs: Needs) -> Finding:
    """C++, Python's headers and ninja are installed if an op has to be compiled."""
    cxx = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    ninja = shutil.which("ninja", path=path)
    headers = Path(sysconfig.get_path("include"), "Python.h")
    tools = {"C++": cxx, "Python.h": headers.is_file(), "ninja": ninja}
    missing = [name for name, found in tools.items() if not found]
    if missing:
        return _problem(
            needs,
            f"missing: {', '.join(missing)}",
            "DeepSpeed compiles its ops at first use",
            "apt-get install g++ python3-dev (dnf: gcc-c++ python3-devel); pip install ninja",
        )
    return ok(f"{cxx}, {ninja}")


@check("compiler")
def nvcc(needs: Needs) -> Finding:
    """The CUDA toolkit fits torch if offload compiles an op on a machine with GPUs."""
    wheel = torch_cuda()
    if not (needs.offload and count_gpus() and wheel):
        return skip("nothing is compiled for CUDA")
    fix = f"install the CUDA {wheel} toolkit and set CUDA_HOME"
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    tool = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if not tool:
        return fail("no nvcc", "DeepSpeed's CPU optimizer needs it", fix)
    release = re.search(r"release ([\d.]+)", run_tool(tool, "--version")[0])
    found = f"nvcc {release[1] if release else '?'}, torch for CUDA {wheel}"
    if release and Version(release[1]).major != Version(wheel).major:
        return fail(found, "DeepSpeed refuses another major version", fix)
    return ok(found)


@check("compiler")
def op_folder(needs: Needs) -> Finding:
    """Compiled ops can be stored and loaded."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
    existing = folder if folder.is_dir() else nearest_existing(folder)
    fix = "export TORCH_EXTENSIONS_DIR=FOLDER"
    if not os.access(existing, os.W_OK | os.X_OK):
        return _problem(needs, f"{folder} cannot be written", "compiled ops are stored there", fix)
    if os.statvfs(existing).f_flag & os.ST_NOEXEC:
        return _problem(needs, f"{folder} is mounted noexec", "compiled ops cannot be loaded", fix)
    return ok(str(folder))
