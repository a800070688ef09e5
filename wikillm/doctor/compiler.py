"""Can DeepSpeed's ops be compiled, stored and loaded?"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from packaging.version import Version

from wikillm.core.files import nearest_existing
from wikillm.doctor.checks import Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import CompilerFacts, NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import read, run_tool


def gather_compiler() -> CompilerFacts:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc") or ""
    release = re.search(r"release ([\d.]+)", run_tool(nvcc, "--version")[0]) if nvcc else None
    folder = extensions_folder()
    existing = folder if folder.is_dir() else nearest_existing(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return CompilerFacts(
        cxx=os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "",
        has_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        ninja=shutil.which("ninja", path=path) or "",
        nvcc=nvcc,
        nvcc_cuda=release[1] if release else "",
        folder=str(folder),
        is_writable=os.access(existing, os.W_OK | os.X_OK),
        is_executable=not _is_noexec(existing),
    )


def extensions_folder() -> Path:
    """Where torch stores compiled extensions."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "torch_extensions"


def _is_noexec(folder: Path) -> bool:
    mounts = [line.split() for line in read("/proc/mounts").splitlines()]
    path = folder.resolve()
    above = [(len(m[1]), m[3]) for m in mounts if path.is_relative_to(m[1])]
    return bool(above) and "noexec" in max(above, key=lambda found: found[0])[1].split(",")


def compiles(facts: NodeFacts, needs: Needs) -> bool:
    """Whether the run compiles an op: the CPU's collectives, or offload's CPU optimizer."""
    return bool(needs.recipe) and (needs.offload or not facts.gpu_count)


@check("compiler", "compiler")
def toolchain(facts: NodeFacts, needs: Needs) -> Verdict:
    """C++, Python's headers and ninja are there where an op has to be compiled."""
    compiler = facts.compiler
    tools = {"C++": compiler.cxx, "Python.h": compiler.has_headers, "ninja": compiler.ninja}
    missing = [name for name, found in tools.items() if not found]
    if missing:
        problem = fail if compiles(facts, needs) else warn
        return problem(
            f"missing: {', '.join(missing)}",
            "DeepSpeed compiles its ops at first use",
            "apt-get install g++ python3-dev (dnf: gcc-c++ python3-devel); pip install ninja",
        )
    return ok(f"{compiler.cxx}, {compiler.ninja}")


@check("compiler", "compiler")
def nvcc(facts: NodeFacts, needs: Needs) -> Verdict:
    """The CUDA toolkit fits torch where offload compiles an op on a machine with GPUs."""
    wheel = facts.software.torch_cuda if facts.software else None
    if not (needs.offload and facts.gpu_count and wheel):
        return skip("nothing is compiled for CUDA")
    compiler = facts.compiler
    fix = f"install the CUDA {wheel} toolkit and set CUDA_HOME"
    if not compiler.nvcc:
        return fail("no nvcc", "DeepSpeed's CPU optimizer needs it", fix)
    found = f"nvcc {compiler.nvcc_cuda or '?'}, torch for CUDA {wheel}"
    if compiler.nvcc_cuda and Version(compiler.nvcc_cuda).major != Version(wheel).major:
        return fail(found, "DeepSpeed refuses another major version", fix)
    return ok(found)


@check("compiler", "compiler")
def op_folder(facts: NodeFacts, needs: Needs) -> Verdict:
    """Compiled ops can be stored and loaded."""
    compiler = facts.compiler
    problem = fail if compiles(facts, needs) else warn
    fix = "export TORCH_EXTENSIONS_DIR=FOLDER"
    if not compiler.is_writable:
        return problem(f"{compiler.folder} cannot be written", "compiled ops are stored there", fix)
    if not compiler.is_executable:
        return problem(f"{compiler.folder} is mounted noexec", "compiled ops cannot be loaded", fix)
    return ok(compiler.folder)
