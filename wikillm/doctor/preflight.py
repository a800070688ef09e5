"""What `wikillm train` asks before it opens the data: a few of the doctor's questions, local, in milliseconds.

Only what would certainly end the run is refused, each by the same judgement that `wikillm doctor` shows; doubts are left
to the doctor. What the start of a run checks itself (shared memory on CPU, the run directory, the store) is not repeated.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError, MachineError, Problems
from wikillm.core.world import World
from wikillm.doctor.checks import disk, host, network, python
from wikillm.doctor.facts import Disk, NodeFacts
from wikillm.doctor.gather.disk import look_at, look_at_checkpoints
from wikillm.doctor.gather.everything import relevant_environment
from wikillm.doctor.gather.host import gather_host
from wikillm.doctor.gather.network import gather_network
from wikillm.doctor.gather.software import gather_software
from wikillm.doctor.needs import needs_of, request_of
from wikillm.doctor.verdict import Check

CHECKS: tuple[Check, ...] = (
    python.packages_there,
    host.memory,
    host.open_files,
    disk.checkpoint_room,
)
BETWEEN_RANKS: tuple[Check, ...] = (network.card_named,)
IMPORTED = frozenset(
    {
        "torch",
        "transformers",
        "accelerate",
        "numpy",
        "orjson",
        "pyarrow",
        "safetensors",
        "tokenizers",
    }
)
"""Without these no run gets to its first step, whatever its settings."""
DRIVER = Path("/dev/nvidiactl")


def refuse_broken_machine(resolved: Resolved, world: World) -> None:
    """Raises MachineError with everything that would end the run. (local rank 0 of each node; others wait for it)"""
    if world.local_rank:
        return
    try:
        needs = needs_of(
            resolved, nodes=world.nodes, slots=world.local_size, has_gpu=DRIVER.exists()
        )
    except ConfigError:  # of an estimate, or of the run: its own plan, made from the data, refuses it with the right numbers
        return
    facts = gather_cheaply(resolved)
    problems = Problems(MachineError)
    for check in (*CHECKS, *(BETWEEN_RANKS if world.size > 1 else ())):
        verdict = check.judge(facts, needs)
        if verdict.level == "fail":
            problems.add(
                f"{check.name}: {verdict.why}.", got=verdict.found, fix=verdict.fix or None
            )
    problems.raise_if_any()


def gather_cheaply(resolved: Resolved) -> NodeFacts:
    """The sections that `CHECKS` read, without starting a tool, reading data or writing a file."""
    request = request_of(resolved, master=os.environ.get("MASTER_ADDR", ""), master_port=0)
    run, temporary = (look_at(Path(path), measure=False) for path in (request.run_dir, "/tmp"))
    software, environment = gather_software(digest=False), relevant_environment(os.environ)
    if not DRIVER.exists():
        environment.pop("NCCL_SOCKET_IFNAME", None)  # without a GPU nobody asks NCCL
    return NodeFacts(
        software=replace(
            software, packages={n: v for n, v in software.packages.items() if n in IMPORTED}
        ),
        host=gather_host(ask_tools=False),
        disk=Disk(run, run, False, temporary, {}, 0, "", *look_at_checkpoints(request)),
        network=gather_network(request, ask_tools=False),
        environment=environment,
    )
