"""What DeepSpeed's ops need to be compiled, and locks that would make the run wait for ever."""

from __future__ import annotations

from packaging.version import Version

from wikillm.core.units import format_seconds
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Verdict, check, fail, ok, skip, warn

ABANDONED = 600.0
"""Seconds: no file of a compilation in progress stays untouched for so long, also where its owner cannot be seen."""


def compiles(facts: NodeFacts, needs: Needs) -> bool:
    """Whether the run compiles an op: the CPU's collectives, or the CPU optimizer of offload."""
    on_gpu = bool(facts.gpus and facts.gpus.cards)
    return bool(needs.recipe) and (needs.offload or not on_gpu)


@check("compiler", "compiler")
def cxx(facts: NodeFacts, needs: Needs) -> Verdict:
    """There is a C++ compiler where an op has to be compiled."""
    found = facts.compiler.cxx
    if found:
        return ok(f"{found} {facts.compiler.cxx_version}".strip())
    answer = fail if compiles(facts, needs) else warn
    return answer(
        "none",
        "DeepSpeed compiles its ops at first use",
        "apt-get install g++ (dnf install gcc-c++)",
    )


@check("compiler", "compiler")
def python_headers(facts: NodeFacts, needs: Needs) -> Verdict:
    """Python's headers are installed where an op has to be compiled."""
    if facts.compiler.has_headers:
        return ok("Python.h")
    answer = fail if compiles(facts, needs) else warn
    return answer(
        "no Python.h",
        "DeepSpeed's ops are Python extensions",
        "apt-get install python3-dev (dnf install python3-devel)",
    )


@check("compiler", "compiler")
def ninja(facts: NodeFacts, needs: Needs) -> Verdict:
    """ninja is there where an op has to be compiled."""
    if facts.compiler.ninja:
        return ok(facts.compiler.ninja)
    answer = fail if compiles(facts, needs) else warn
    return answer("none", "torch compiles extensions with it", "pip install ninja")


@check("compiler", "compiler")
def nvcc(facts: NodeFacts, needs: Needs) -> Verdict:
    """The CUDA toolkit fits torch where offload compiles an op on a machine with GPUs."""
    wheel = facts.software.torch_cuda if facts.software else None
    if not (needs.offload and facts.gpus and facts.gpus.cards and wheel):
        return skip("nothing is compiled for CUDA")
    compiler = facts.compiler
    if not compiler.nvcc:
        return fail(
            "no nvcc",
            "DeepSpeed's CPU optimizer looks for the CUDA toolkit",
            f"install the CUDA {wheel} toolkit, set CUDA_HOME",
        )
    found = f"nvcc {compiler.nvcc_cuda or '?'}, torch for CUDA {wheel}"
    if compiler.nvcc_cuda and Version(compiler.nvcc_cuda).major != Version(wheel).major:
        return fail(
            found,
            "DeepSpeed refuses to compile with another major version",
            f"the CUDA {wheel} toolkit, CUDA_HOME",
        )
    return ok(found)


@check("compiler", "compiler")
def op_folder(facts: NodeFacts, needs: Needs) -> Verdict:
    """Compiled ops can be kept and loaded."""
    compiler = facts.compiler
    answer = fail if compiles(facts, needs) else warn
    if not compiler.is_writable:
        return answer(
            f"{compiler.folder} cannot be written",
            "compiled ops are kept there",
            "export TORCH_EXTENSIONS_DIR=FOLDER",
        )
    if not compiler.is_executable:
        return answer(
            f"{compiler.folder} is mounted noexec",
            "compiled ops cannot be loaded",
            "export TORCH_EXTENSIONS_DIR=FOLDER",
        )
    return ok(compiler.folder)


@check("compiler", "compiler")
def op_locks(facts: NodeFacts, needs: Needs) -> Verdict:
    """No killed compilation left a lock that the run would wait for."""
    free = [lock for lock in facts.compiler.locks if not lock.is_held]
    if free:
        oldest = max(free, key=lambda lock: lock.age)
        found = f"{oldest.path}, untouched for {format_seconds(oldest.age)}, no process here has it open"
        fix = f"rm {oldest.path}, when no other node compiles"
        if oldest.age > ABANDONED:
            return fail(found, "torch waits for a lock file without end", fix)
        return warn(
            found, "torch waits for it: a compilation was killed, or another node compiles", fix
        )
    return ok(
        f"{len(facts.compiler.locks)} held by a compilation" if facts.compiler.locks else "none"
    )
