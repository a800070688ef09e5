"""Rank and world size of this process, from environment variables alone.

Every launcher (deepspeed, torchrun, WikiLLM's sbatch file) sets RANK, WORLD_SIZE and LOCAL_RANK.
Open MPI uses other names, which `adopt_open_mpi` translates. Plain `python train.py` sets none of
them and is a world of one process; `World.export` then sets the variables, because DeepSpeed would
otherwise try to import mpi4py and fail.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from wikillm.core.errors import MachineError


@dataclass(frozen=True, slots=True)
class World:
    """`size` processes on `size / local_size` nodes. `local_rank` is the rank within this node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        return max(1, self.size // max(1, self.local_size))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> World:
        """Read the launcher's variables. Raises MachineError when they contradict each other."""

        def number(name: str, default: int) -> int:
            text = environ.get(name, str(default))
            try:
                return int(text)
            except ValueError:
                raise _not_a_number(name, text) from None

        size = number("WORLD_SIZE", 1)
        rank = number("RANK", 0)
        local_rank = number("LOCAL_RANK", 0)
        local_size = number("LOCAL_WORLD_SIZE", number("LOCAL_SIZE", size))
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise MachineError(
                "The launcher's environment variables contradict each other.",
                got=f"RANK={rank} WORLD_SIZE={size} LOCAL_RANK={local_rank} "
                f"LOCAL_WORLD_SIZE={local_size}",
                fix=f"{_LAUNCH}, or unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE "
                "for a single process",
            )
        return cls(rank=rank, size=size, local_rank=local_rank, local_size=local_size)

    def check_rendezvous(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Check that a run of several ranks has a rendezvous address.

        For a single process, remove the launcher's variables if they are incomplete.

        Raises:
            MachineError: MASTER_ADDR or MASTER_PORT is missing or invalid, or an unsupported MPI
                started several processes.
        """
        if self.size == 1:
            _refuse_unknown_mpi(environ)
            if not all(environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
                # With these variables torch would wait for a rendezvous that never happens.
                for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
                    environ.pop(name, None)
                return
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
        port = environ.get("MASTER_PORT", "")
        if missing or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            problem = f"{' and '.join(missing)} not set" if missing else f"MASTER_PORT={port}"
            raise MachineError(
                f"The environment has no rendezvous address for the {self.size} ranks of this run.",
                got=f"RANK={self.rank} WORLD_SIZE={self.size}, {problem}",
                fix=f"{_LAUNCH}, or set MASTER_ADDR and MASTER_PORT (1 to 65535) on every rank; "
                "for a single process: unset RANK WORLD_SIZE LOCAL_RANK",
            )

    def export(self) -> None:
        """For a process without a launcher, set the variables that torch.distributed and DeepSpeed
        read."""
        if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
            return
        if self.size != 1:
            raise MachineError(
                f"WORLD_SIZE={self.size} is set, but RANK or MASTER_ADDR is not.",
                fix="start with `deepspeed train.py ...` or `torchrun ...`, or unset WORLD_SIZE",
            )
        os.environ.update(
            RANK="0",
            WORLD_SIZE="1",
            LOCAL_RANK="0",
            LOCAL_WORLD_SIZE="1",
            LOCAL_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
        )


_LAUNCH = "start with `deepspeed train.py ...` or `torchrun --nproc_per_node N train.py ...`"
_OTHER_MPI = ("PMI_SIZE", "MV2_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Process counts set by MPICH, Intel MPI, Slurm's PMI, MVAPICH and Open MPI; accelerate reads them
too. Open MPI's count is refused only if its ranks are missing: `adopt_open_mpi` has not run."""
_OPEN_MPI = {
    "RANK": "RANK",
    "WORLD_SIZE": "SIZE",
    "LOCAL_RANK": "LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "LOCAL_SIZE",
}
"""{torch's name: Open MPI's name after OMPI_COMM_WORLD_} (mpirun(1), "Exported Environment
Variables")."""


def _not_a_number(name: str, text: str) -> MachineError:
    return MachineError(
        f"The environment variable {name} is not a number.",
        got=repr(text),
        fix=f"{_LAUNCH}; for a single process: unset {name}",
    )


def _refuse_unknown_mpi(environ: Mapping[str, str]) -> None:
    for name in _OTHER_MPI:
        if not environ.get(name, "1").strip().isdecimal():
            raise _not_a_number(name, environ[name])
    several = [n for n in _OTHER_MPI if environ.get(n, "1") not in ("", "1")]
    if several and "RANK" not in environ:
        raise MachineError(
            "An MPI launcher started several processes, and each would train alone.",
            got=", ".join(f"{name}={environ[name]}" for name in several),
            fix=f"{_LAUNCH}; for a single process: unset {' '.join(several)}",
        )


def adopt_open_mpi(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set torch's variables in a process that `mpirun` started.

    Raises MachineError if there are several nodes and MASTER_ADDR is not set.
    """
    if "RANK" in environ or "OMPI_COMM_WORLD_RANK" not in environ:
        return
    variables = {name: f"OMPI_COMM_WORLD_{theirs}" for name, theirs in _OPEN_MPI.items()}
    missing = [theirs for theirs in variables.values() if theirs not in environ]
    if missing:
        raise MachineError(
            "The environment variables of mpirun are incomplete.",
            got=f"{', '.join(missing)} not set",
            fix=f"{_LAUNCH}; for a single process: unset OMPI_COMM_WORLD_RANK",
        )
    environ.update({name: environ[theirs] for name, theirs in variables.items()})
    environ.setdefault("MASTER_PORT", "29500")
    if environ["WORLD_SIZE"] == environ["LOCAL_WORLD_SIZE"]:
        environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_ADDR" not in environ:
        raise MachineError(
            "mpirun started processes on several nodes without a rendezvous address.",
            got=f"rank {environ['RANK']} of {environ['WORLD_SIZE']}, MASTER_ADDR is not set",
            fix="mpirun -x MASTER_ADDR=FIRST_HOST ...",
        )


def free_port() -> int:
    """A TCP port that is free on loopback; another process can take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
