"""The checks of `wikillm train` before it opens the data: few, local, in milliseconds.

Only faults that would certainly end the run are refused, by the checks of `wikillm doctor`. Faults
that a start finds itself (shared memory on CPU, run directory, store) are not checked here.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from wikillm.core.errors import MachineError, Problems
from wikillm.doctor.checks import Check
from wikillm.doctor.disk import checkpoint_room, inspect_checkpoints, inspect_folder
from wikillm.doctor.environment import relevant_environment
from wikillm.doctor.facts import DiskFacts, NodeFacts
from wikillm.doctor.host import gather_host, memory, open_files
from wikillm.doctor.needs import Needs, Request
from wikillm.doctor.network import card_named, gather_network
from wikillm.doctor.software import gather_software, packages_there

CHECKS: tuple[Check, ...] = (packages_there, memory, open_files, checkpoint_room)
BETWEEN_RANKS: tuple[Check, ...] = (card_named,)
IMPORTED = (
    "torch", "transformers", "accelerate", "numpy", "orjson", "pyarrow", "safetensors",
    "tokenizers",
)  # fmt: skip
"""Without these no run gets to its first step, whatever its settings."""
DRIVER = Path("/dev/nvidiactl")


def refuse_broken_machine(request: Request, needs: Needs) -> None:
    """Raises MachineError with everything that would end the run. (local rank 0 of each node)"""
    facts = gather_cheaply(request)
    problems = Problems(MachineError)
    for check in (*CHECKS, *(BETWEEN_RANKS if needs.ranks > 1 else ())):
        verdict = check.judge(facts, needs)
        if verdict.level == "fail":
            what = f"{check.name}: {verdict.why}."
            problems.add(what, got=verdict.found, fix=verdict.fix or None)
    problems.raise_if_any()


def gather_cheaply(request: Request) -> NodeFacts:
    """The sections that `CHECKS` read, without tools, name servers, data or writes."""
    software = gather_software(digest=False)
    packages = {name: v for name, v in software.packages.items() if name in IMPORTED}
    environment = relevant_environment(os.environ)
    if not DRIVER.exists():
        environment.pop("NCCL_SOCKET_IFNAME", None)  # without a GPU nothing uses NCCL
    run = inspect_folder(Path(request.run_dir))
    return NodeFacts(
        software=replace(software, packages=packages),
        host=gather_host(),
        disk=DiskFacts(run, run, False, {}, 0, "", *inspect_checkpoints(request)),
        network=gather_network(request, resolve_names=False),
        environment=environment,
    )
