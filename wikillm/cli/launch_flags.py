"""The flags of `wikillm launch`: how each is declared, and the targets that read it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
from wikillm.launch.targets import TARGETS

ELSEWHERE = ("hostfile", "ssh", "slurm", "k8s", "sky")
"""Targets whose machines may have files that this machine lacks."""
CLOUD_WORKDIR = "/wikillm"
RESTARTS_HERE = ("single", "multi", "hostfile")
"""Targets whose runs `wikillm launch` itself restarts."""

_SWANLAB_FLAGS = (
    *("--file", "--init", "--zip", "--submit", "--yes", "--follow"),
    *("--every", "--to", "--name", "--desc", "--timeout"),
)
READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_SWANLAB_FLAGS, ("swanlab",)),
    "--nodes": ("torchrun", "slurm", "k8s", "sky"),
    "--gpus": ("multi", "torchrun", "ssh", "slurm", "k8s", "sky"),
    "--hostfile": ("hostfile",),
    "--host": ("ssh",),
    "--workdir": ("hostfile", "ssh", "k8s", "sky"),
    "--master-addr": ("torchrun", "hostfile"),
    "--master-port": ("single", "multi", "torchrun", "hostfile", "ssh", "sky"),
    "--node-rank": ("torchrun",),
    "--max-restarts": (*RESTARTS_HERE, "slurm", "torchrun"),
    "--hours": ("slurm",),
    "--cpus": ("slurm", "k8s"),
    "--memory": ("k8s",),
    "--partition": ("slurm",),
    "--account": ("slurm",),
    "--storage": ("k8s", "sky"),
    "--image": ("k8s",),
    "--gpu": ("sky",),
}
"""{flag: the targets that read it}. `--elastic` has its own rule."""
_DEFAULTS = {"--nodes": 1, "--cpus": 8}


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    _add_swanlab_flags(parser.add_argument_group("target swanlab").add_argument)
    add = parser.add_argument_group("the machines").add_argument
    add("--nodes", type=nodes, default=_DEFAULTS["--nodes"], help="number of nodes (default 1)")
    help = "processes per node, one per GPU"
    add("--gpus", "--gpus-per-node", type=gpus, metavar="N", help=help)
    help = "one line per node: node1 slots=8"
    add("--hostfile", type=Path, metavar="FILE", help=help)
    add("--host", metavar="[USER@]HOST", help="the machine of target ssh")
    help = (
        "the checkout on the other machines. Default: this folder; ssh: wikillm; k8s, sky: the "
        f"mount point of the storage ({CLOUD_WORKDIR})"
    )
    add("--workdir", type=folder, metavar="FOLDER", help=help)
    help = "address at which the other nodes reach the first. Default: by target"
    add("--master-addr", type=host, metavar="HOST", help=help)
    help = "default 29500; --go takes a free port if 29500 is in use"
    add("--master-port", type=port, metavar="PORT", help=help)
    help = "torchrun: number of this node, from 0"
    add("--node-rank", type=index, metavar="N", help=help)
    help = (
        "restarts from the last checkpoint after a failure; each new checkpoint resets the count "
        "(default 3; torchrun: its own restarts, default 0)"
    )
    add("--max-restarts", type=restarts, metavar="N", help=help)
    add("--hours", type=hours, metavar="H", help="slurm: time limit (default 24)")
    help = "cores per GPU (default 8)"
    add("--cpus", type=positive, default=_DEFAULTS["--cpus"], metavar="N", help=help)
    help = "k8s: memory of a pod. Default: 32GiB per GPU, plus the offloaded states"
    add("--memory", type=memory, metavar="SIZE", help=help)
    add("--partition", type=word, metavar="NAME", help="slurm: partition")
    add("--account", type=word, metavar="NAME", help="slurm: account")
    help = (
        "k8s: volume claim; sky: bucket (s3://...) or volume, for data and run directory. "
        "Default: by run.name"
    )
    add("--storage", metavar="NAME", help=help)
    add("--image", metavar="NAME", help="k8s: container image with WikiLLM")
    add("--gpu", metavar="KIND", help="sky: kind of GPU, such as H100")
    help = (
        "restart without nodes that do not respond (hostfile), or without lost GPUs and a rank "
        "that failed in two consecutive starts (multi); the global batch stays the same"
    )
    add("--elastic", action="store_true", help=help)


def _add_swanlab_flags(add: Callable[..., object]) -> None:
    help = "the manifest (default swanlab.yaml)"
    add("-f", "--file", type=Path, metavar="FILE", help=help)
    add("--init", action="store_true", help="write a manifest to start from")
    help = "write the archive that a job would unpack"
    add("--zip", type=Path, metavar="FILE", help=help)
    help = "upload the archive and start it; asks first"
    add("--submit", action="store_true", help=help)
    help = "upload code, data or the key without asking"
    add("--yes", action="store_true", help=help)
    help = "with --submit: show the task's state until it ends"
    add("--follow", action="store_true", help=help)
    add("--every", type=seconds, metavar="SECONDS", help="poll interval (default 10)")
    help = "where to save the output of an ended task"
    add("--to", type=Path, metavar="FOLDER", help=help)
    help = "data upload: name of the data set (default: the file's)"
    add("--name", metavar="NAME", help=help)
    add("--desc", metavar="TEXT", help="data upload: one-line description of the data set")
    add("--timeout", type=seconds, metavar="SECONDS", help="limit per request (default 30)")


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """{flag: value} of the flags in READ_BY whose value is not the default."""
    values = {flag: getattr(args, flag[2:].replace("-", "_")) for flag in READ_BY}
    return {
        flag: value
        for flag, value in values.items()
        if value is not False and value != _DEFAULTS.get(flag)
    }


def check_flags(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that the target does not read, or that contradict others."""
    problems = Problems(ConfigError)
    if args.target == "single" and args.gpus == 1:  # redundant, so accepted
        args.gpus = None
    for flag in given_flags(args):
        if args.target in (*TARGETS, "swanlab") and args.target not in READ_BY[flag]:
            problems.add(
                f"{flag} has no effect on the target {args.target}.",
                got=f"it is for {', '.join(READ_BY[flag])}",
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
