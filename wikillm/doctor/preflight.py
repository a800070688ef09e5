"""A few local checks of `wikillm train` before it opens the data; they take milliseconds.

They are checks of `wikillm doctor`, and refuse only faults that would certainly end the run. Faults
that the start finds anyway (shared memory on CPU, run directory, store) are not checked here.
"""

from __future__ import annotations

from wikillm.core.errors import MachineError, Problems
from wikillm.doctor.compiler import toolchain
from wikillm.doctor.disk import checkpoint_room
from wikillm.doctor.host import memory, open_files
from wikillm.doctor.needs import Needs
from wikillm.doctor.network import card_named
from wikillm.doctor.software import INSTALL
from wikillm.supervise.node_versions import installed_version

IMPORTED = (
    "torch", "transformers", "accelerate", "numpy", "orjson", "pyarrow", "safetensors",
    "tokenizers",
)  # fmt: skip
"""No run reaches its first step without these packages, whatever its settings."""


def refuse_broken_machine(needs: Needs) -> None:
    """Raise MachineError with all faults that would end the run. (local rank 0 of each node)"""
    problems = Problems(MachineError)
    missing = [name for name in IMPORTED if installed_version(name) is None]
    if missing:
        problems.add("Packages are not installed.", got=", ".join(missing), fix=INSTALL)
    between_ranks = (card_named,) if needs.ranks > 1 else ()
    for check in (memory, open_files, toolchain, checkpoint_room, *between_ranks):
        finding = check(needs)
        if finding.level == "fail":
            what = f"{check.name}: {finding.why}."
            problems.add(what, got=finding.found, fix=finding.fix or None)
    problems.raise_if_any()
