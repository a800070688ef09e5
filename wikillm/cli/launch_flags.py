"""The flags of `wikillm launch`: the legal values of each flag, and the targets that read it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.cli.arguments import (
    folder,
    gpus,
    host,
    hours,
    index,
    memory,
    nodes,
    port,
    positive,
    restarts,
    seconds,
    word,
)
from wikillm.core.errors import ConfigError, Problems

TARGET_NAMES = ("single", "multi", "torchrun", "hostfile", "ssh", "slurm", "k8s", "sky")
ELSEWHERE = ("hostfile", "ssh", "slurm", "k8s", "sky")
"""Targets whose machines may have files that this machine lacks."""
CLOUD_WORKDIR = "/wikillm"


@dataclass(frozen=True, slots=True)
class MachineFlag:
    """A flag about the machines. `targets` are the targets that read it; empty means all."""

    name: str
    help: str
    metavar: str | None = None
    kind: Callable[[str], Any] = str
    default: Any = None
    targets: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


RESTARTS_HERE = ("single", "multi", "hostfile")
"""Targets whose runs `wikillm launch` itself restarts."""
BATCH_TARGETS = ("slurm", "k8s", "sky")
MACHINE_FLAGS = (
    MachineFlag(
        "nodes", "number of nodes (default 1)", None, nodes, 1, ("torchrun", *BATCH_TARGETS)
    ),
    MachineFlag(
        "gpus",
        "processes per node, one per GPU",
        "N",
        gpus,
        targets=("multi", "torchrun", "ssh", *BATCH_TARGETS),
    ),
    MachineFlag("hostfile", "one line per node: node1 slots=8", "FILE", Path, None, ("hostfile",)),
    MachineFlag("host", "the machine of target ssh", "[USER@]HOST", targets=("ssh",)),
    MachineFlag(
        "workdir",
        "the checkout on the other machines. Default: this folder; ssh: wikillm; k8s, sky: the "
        f"mount point of the storage ({CLOUD_WORKDIR})",
        "FOLDER",
        folder,
        targets=("hostfile", "ssh", "k8s", "sky"),
    ),
    MachineFlag(
        "master_addr",
        "address at which the other nodes reach the first. Default: by target",
        "HOST",
        host,
        targets=("torchrun", "hostfile"),
    ),
    MachineFlag(
        "master_port", "default 29500; --go takes a free port if 29500 is in use", "PORT", port
    ),
    MachineFlag(
        "node_rank", "torchrun: number of this node, from 0", "N", index, None, ("torchrun",)
    ),
    MachineFlag(
        "max_restarts",
        "restarts from the last checkpoint after a failure; each new checkpoint resets the count "
        "(default 3; torchrun: its own restarts, default 0)",
        "N",
        restarts,
        None,
        (*RESTARTS_HERE, "slurm", "torchrun"),
    ),
    MachineFlag("hours", "slurm: time limit (default 24)", "H", hours, None, ("slurm",)),
    MachineFlag("cpus", "cores per GPU (default 8)", "N", positive, 8, ("slurm", "k8s")),
    MachineFlag(
        "memory",
        "k8s: memory of a pod. Default: 32GiB per GPU, plus the offloaded states",
        "SIZE",
        memory,
        targets=("k8s",),
    ),
    MachineFlag("partition", "slurm: partition", "NAME", word, targets=("slurm",)),
    MachineFlag("account", "slurm: account", "NAME", word, targets=("slurm",)),
    MachineFlag(
        "storage",
        "k8s: volume claim; sky: bucket (s3://...) or volume, for data and run directory. "
        "Default: by run.name",
        "NAME",
        targets=("k8s", "sky"),
    ),
    MachineFlag("image", "k8s: container image with WikiLLM", "NAME", targets=("k8s",)),
    MachineFlag("gpu", "sky: kind of GPU, such as H100", "KIND", targets=("sky",)),
)
SWANLAB_FLAGS: dict[str, dict[str, Any]] = {
    "file": {"type": Path, "metavar": "FILE", "help": "the manifest (default swanlab.yaml)"},
    "init": {"action": "store_true", "help": "write a manifest to start from"},
    "zip": {"type": Path, "metavar": "FILE", "help": "write the archive that a job would unpack"},
    "submit": {"action": "store_true", "help": "upload the archive and start it; asks first"},
    "yes": {"action": "store_true", "help": "upload code, data or the key without asking"},
    "follow": {
        "action": "store_true",
        "help": "with --submit: show the task's state until it ends",
    },
    "every": {"type": seconds, "metavar": "SECONDS", "help": "poll interval (default 10)"},
    "to": {"type": Path, "metavar": "FOLDER", "help": "where to save the output of an ended task"},
    "name": {"metavar": "NAME", "help": "data upload: name of the data set (default: the file's)"},
    "desc": {"metavar": "TEXT", "help": "data upload: one-line description of the data set"},
    "timeout": {"type": seconds, "metavar": "SECONDS", "help": "limit per request (default 30)"},
}


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    swanlab = parser.add_argument_group("target swanlab")
    for name, options in SWANLAB_FLAGS.items():
        swanlab.add_argument(*(["-f"] if name == "file" else []), f"--{name}", **options)
    machine = parser.add_argument_group("the machines")
    for flag in MACHINE_FLAGS:
        machine.add_argument(
            flag.flag,
            *(["--gpus-per-node"] if flag.name == "gpus" else []),
            type=flag.kind,
            default=flag.default,
            metavar=flag.metavar,
            help=flag.help,
        )
    elastic = (
        "restart without nodes that do not respond (hostfile), or without lost GPUs and a rank "
        "that failed in two consecutive starts (multi); the global batch stays the same"
    )
    machine.add_argument("--elastic", action="store_true", help=elastic)


def check_flags(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that the target does not read, or that contradict others."""
    problems = Problems(ConfigError)
    for name in SWANLAB_FLAGS:
        if getattr(args, name):
            what = f"--{name} is for the target swanlab."
            problems.add(what, got=args.target, fix="wikillm launch swanlab ...")
    if args.target == "single" and args.gpus == 1:  # redundant, so accepted
        args.gpus = None
    for flag in MACHINE_FLAGS:
        value = getattr(args, flag.name)
        is_read = not flag.targets or args.target in flag.targets
        if args.target in TARGET_NAMES and not is_read and value != flag.default:
            problems.add(
                f"{flag.flag} has no effect on the target {args.target}.",
                got=f"it is for {', '.join(flag.targets)}",
                fix="leave it out, or name another target",
            )
    if args.elastic and (args.target not in ("hostfile", "multi") or args.max_restarts == 0):
        problems.add(
            "--elastic is for the targets hostfile and multi with restarts.",
            got=args.target + (" --max-restarts 0" if args.max_restarts == 0 else ""),
            fix="leave it out",
        )
    if args.node_rank is not None and args.node_rank >= args.nodes:
        problems.add("--node-rank must be below --nodes.", got=f"{args.node_rank} of {args.nodes}")
    problems.raise_if_any()
