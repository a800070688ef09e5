"""`wikillm launch TARGET`: one description of a run, shown (`--print`) or started (`--go`) on any kind of machine."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved
    from wikillm.launch.description import Launch

HELP = "Show or start a run here, on many nodes, under Slurm, Kubernetes, SkyPilot, for SwanLab."
_TARGETS = """\
the target, right behind `launch`:
  single     one GPU of this machine (or its CPU), with the deepspeed launcher
  multi      all GPUs of this machine; --gpus N for some, or for N processes on the CPU
  torchrun   torch's launcher; --max-restarts N starts the ranks again after a failure
  hostfile   several nodes over ssh: --hostfile FILE, --workdir FOLDER shared by all nodes
  ssh        one other machine: --host user@machine; copies the checkout and starts in the background
  slurm      an sbatch file: --nodes N --gpus 8; saves and queues itself again before the time limit
  k8s        a Job or PyTorchJob: --image NAME --nodes N --gpus 8 --storage CLAIM
  sky        a SkyPilot task: --gpu H100 --gpus 8 --nodes N --storage s3://BUCKET
  swanlab    a folder for SwanLab Launch: --init, --print, --zip FILE, --submit; and, by words behind it:
             task list | status ID | follow ID | stop ID | fetch ID;  data list | upload FILE|FOLDER
"""
ELSEWHERE = ("hostfile", "ssh", "slurm", "k8s", "sky")
"""Targets whose machines may have files that this one has not."""
TARGET_NAMES = ("single", "multi", "torchrun", "hostfile", "ssh", "slurm", "k8s", "sky")
FOR_TARGETS: dict[str, tuple[object, tuple[str, ...]]] = {
    "nodes": (1, ("torchrun", "slurm", "k8s", "sky")),
    "gpus": (None, ("multi", "torchrun", "ssh", "slurm", "k8s", "sky")),
    "hostfile": (None, ("hostfile",)),
    "host": (None, ("ssh",)),
    "workdir": (None, ("hostfile", "ssh", "k8s", "sky")),
    "master_addr": (None, ("torchrun", "hostfile")),
    "node_rank": (None, ("torchrun",)),
    "max_restarts": (0, ("torchrun",)),
    "hours": (None, ("slurm",)),
    "cpus": (8, ("slurm", "k8s")),
    "memory": (None, ("k8s",)),
    "partition": (None, ("slurm",)),
    "account": (None, ("slurm",)),
    "storage": (None, ("k8s", "sky")),
    "image": (None, ("k8s",)),
    "gpu": (None, ("sky",)),
}
"""Flag -> its value when it was not given, and the targets that read it."""
_WORD = re.compile(r"[A-Za-z0-9][\w.,:@-]{0,127}")


def configure(parser: argparse.ArgumentParser) -> None:
    from wikillm.cli.run_config import add_run_config_arguments

    add_run_config_arguments(parser)
    parser.description = f"{HELP}\n\n{_TARGETS}"
    parser.usage = f"{parser.prog} TARGET (--print | --go) [options] [--config NAME|FILE] [--deepspeed NAME] [KEY=VALUE ...]"
    parser.add_argument("target", metavar="TARGET", help="where the run goes, see above")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--print", action="store_true", dest="show", help="show exactly what would run"
    )
    action.add_argument("--go", action="store_true", help="run it")
    parser.add_argument("--resume", metavar="auto|never|PATH", help="as in `wikillm train`")
    parser.add_argument("--allow-change", action="store_true", help="as in `wikillm train`")
    swanlab = parser.add_argument_group("target swanlab")
    swanlab.add_argument(
        "-f", "--file", type=Path, metavar="FILE", help="the manifest (default swanlab.yaml)"
    )
    swanlab.add_argument("--init", action="store_true", help="write a manifest to start from")
    swanlab.add_argument(
        "--zip", type=Path, metavar="FILE", help="write the archive that a job would unpack"
    )
    swanlab.add_argument(
        "--submit",
        action="store_true",
        help="upload the archive and start it as a task; asks first",
    )
    swanlab.add_argument(
        "--yes",
        action="store_true",
        help="do not ask before code, data or the key leave this machine",
    )
    swanlab.add_argument(
        "--follow", action="store_true", help="with --submit: show the task's states until it ends"
    )
    swanlab.add_argument(
        "--every", type=float, metavar="SECONDS", help="how often to ask for the state (default 10)"
    )
    swanlab.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where the task's output goes when it has ended"
    )
    swanlab.add_argument(
        "--name", metavar="NAME", help="data upload: name of the data set (default: the file's)"
    )
    swanlab.add_argument("--desc", metavar="TEXT", help="data upload: one line about it")
    swanlab.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="bound of every request (default 30)"
    )
    machine = parser.add_argument_group("the machines")
    machine.add_argument("--nodes", type=int, default=1, help="number of nodes (default 1)")
    machine.add_argument(
        "--gpus", "--gpus-per-node", type=int, metavar="N", help="processes per node, one per GPU"
    )
    machine.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="one line per node: node1 slots=8"
    )
    machine.add_argument("--host", metavar="[USER@]HOST", help="the machine of target ssh")
    machine.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="the checkout on the other machines. Default: this folder; ssh: wikillm. k8s, sky: where the storage is "
        "mounted (/wikillm)",
    )
    machine.add_argument(
        "--master-addr",
        metavar="HOST",
        help="first node, as the others reach it. Default: by target",
    )
    machine.add_argument(
        "--master-port",
        type=int,
        metavar="PORT",
        help="default 29500; --go takes a free one if it is busy",
    )
    machine.add_argument(
        "--node-rank", type=int, metavar="N", help="torchrun: number of this node, from 0"
    )
    machine.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="torchrun: restarts after a failure",
    )
    machine.add_argument("--hours", type=float, metavar="H", help="slurm: time limit (default 24)")
    machine.add_argument(
        "--cpus", type=int, default=8, metavar="N", help="slurm, k8s: cores per GPU (default 8)"
    )
    machine.add_argument(
        "--memory",
        metavar="SIZE",
        help="k8s: memory of a pod. Default: 32GiB per GPU, and what offload fills",
    )
    machine.add_argument(
        "--storage",
        metavar="NAME",
        help="k8s: volume claim; sky: bucket (s3://...) or volume, for data and run directory. Default: by run.name",
    )
    machine.add_argument("--partition", metavar="NAME", help="slurm: partition")
    machine.add_argument("--account", metavar="NAME", help="slurm: account")
    machine.add_argument("--image", metavar="NAME", help="k8s: container image with WikiLLM")
    machine.add_argument("--gpu", metavar="KIND", help="sky: kind of GPU, such as H100")


def run(args: argparse.Namespace) -> int:
    from wikillm.cli.run_config import resolve_run_config
    from wikillm.core.errors import ConfigError
    from wikillm.launch.targets import render, start

    if args.target == "swanlab":
        from wikillm.cli.launch_swanlab import run_swanlab

        return run_swanlab(args)
    _check(args)
    resolved = resolve_run_config(args)
    launch = describe(args, resolved)
    rendering = render(args.target, launch)
    _check_run(args, launch, resolved)
    if args.show:
        print(rendering.text, end="")
        return 0
    if not args.go:
        raise ConfigError(
            "Show it or start it?", fix=f"wikillm launch {args.target} ... --print\nor --go"
        )
    return start(launch, rendering)


def describe(args: argparse.Namespace, resolved: Resolved) -> Launch:
    """The description that every target renders from."""
    from wikillm.launch.description import DEFAULT_PORT, Launch
    from wikillm.observe.redact import names_a_secret
    from wikillm.remote.environment import forwarded

    resume = "auto" if args.max_restarts and args.resume is None else args.resume
    words = [
        word
        for flag in ("config", "deepspeed")
        if (value := getattr(args, flag))
        for word in (f"--{flag}", value)
    ]
    words += ["--resume", resume] if resume else []
    words += ["--allow-change"] if args.allow_change else []
    is_checkout = Path("train.py").is_file() and Path("wikillm").is_dir()
    runs_here = args.target in ("single", "multi", "torchrun")
    port = args.master_port or (
        _free_port(DEFAULT_PORT) if args.go and runs_here and args.nodes == 1 else DEFAULT_PORT
    )
    elsewhere = {"ssh": "wikillm", "k8s": "/wikillm", "sky": "/wikillm"}
    variables = {} if runs_here else forwarded()
    return Launch(
        name=resolved.config.run.name,
        words=(*words, *args.rest),
        command=_command(args, words),
        entry=("train.py",) if is_checkout else ("--module", "wikillm", "train"),
        nodes=args.nodes,
        gpus=1 if args.target == "single" else args.gpus,
        workdir=args.workdir or elsewhere.get(args.target) or str(Path.cwd()),
        master_addr=args.master_addr,
        master_port=port,
        node_rank=args.node_rank,
        max_restarts=args.max_restarts,
        hostfile=args.hostfile,
        host=args.host,
        hours=args.hours,
        cpus=args.cpus,
        memory=_memory(args, resolved) if args.target == "k8s" else None,
        storage=args.storage,
        run_dir=resolved.config.run.dir,
        partition=args.partition,
        account=args.account,
        image=args.image,
        gpu_kind=args.gpu,
        variables=variables,
        secrets=frozenset(
            name for name, value in variables.items() if names_a_secret(name) or "@" in value
        ),
    )


def _memory(args: argparse.Namespace, resolved: Resolved) -> int:
    """Bytes that a pod asks for: 32 GiB per GPU, and the states that offload keeps in the host's memory."""
    from wikillm.cli.memory import memory_argument
    from wikillm.config.precision import resolve_precision
    from wikillm.core.errors import ConfigError
    from wikillm.launch.kubernetes import MEMORY_PER_GPU
    from wikillm.plan.memory import host_bytes_per_rank
    from wikillm.plan.strategy import strategy_of
    from wikillm.plan.workload import describe_workload

    given = memory_argument(args.memory, "--memory")
    gpus = args.gpus or 1
    config = resolved.config
    if given is not None or config.deepspeed.config is None:
        return given or MEMORY_PER_GPU * gpus
    try:
        workload = describe_workload(resolved, ranks=args.nodes * gpus)
        strategy = strategy_of(
            config.model,
            config.train,
            config.deepspeed.config,
            ranks=args.nodes * gpus,
            ranks_per_node=gpus,
            precision=resolve_precision(config.train.precision, has_gpu=True, has_bf16=True),
        )
    except ConfigError:  # `_check_run` refuses it, with more to say
        return MEMORY_PER_GPU * gpus
    return gpus * (MEMORY_PER_GPU + host_bytes_per_rank(workload, strategy))


def _command(args: argparse.Namespace, words: list[str]) -> str:
    """The command line in one line, without secrets: it stands in the first lines of every script."""
    from wikillm.observe.redact import environment_secrets, redact_text

    said = ["wikillm", "launch", args.target]
    for flag in (
        "nodes",
        "gpus",
        "hostfile",
        "host",
        "workdir",
        "master_addr",
        "master_port",
        "node_rank",
        "max_restarts",
        "hours",
        "cpus",
        "memory",
        "partition",
        "account",
        "storage",
        "image",
        "gpu",
    ):
        value = getattr(args, flag)
        if value is not None and (flag, value) not in (
            ("nodes", 1),
            ("max_restarts", 0),
            ("cpus", 8),
        ):
            said += [f"--{flag.replace('_', '-')}", str(value)]
    text = shlex.join([*said, *words, *args.rest, "--print"])
    return redact_text(text.replace("\n", "\\n").replace("\r", "\\r"), environment_secrets())


def _free_port(wanted: int) -> int:
    """`wanted`, or another one when somebody listens there."""
    import socket

    from wikillm.core.log import say
    from wikillm.core.world import free_port

    with socket.socket() as probe:
        try:
            probe.bind(("", wanted))
            return wanted
        except OSError:
            port = free_port()
    say(f"port {wanted} is busy: the ranks meet at {port}")
    return port


def _check(args: argparse.Namespace) -> None:
    """What argparse lets through and a launcher, or a line of a batch file, must not see."""
    from wikillm.core.errors import ConfigError, Problems
    from wikillm.remote.hosts import bare_host, is_host

    problems = Problems(ConfigError)
    for flag in (
        "file",
        "init",
        "zip",
        "submit",
        "yes",
        "follow",
        "every",
        "to",
        "name",
        "desc",
        "timeout",
    ):
        if getattr(args, flag):
            problems.add(
                f"--{flag} is for the target swanlab.",
                got=args.target,
                fix="wikillm launch swanlab ...",
            )
    for flag, least in (
        ("nodes", 1),
        ("gpus", 1),
        ("cpus", 1),
        ("max_restarts", 0),
        ("node_rank", 0),
        ("master_port", 1),
    ):
        value = getattr(args, flag)
        if value is not None and value < least:
            problems.add(f"--{flag.replace('_', '-')} is at least {least}.", got=str(value))
    for flag, most in (("master_port", 65535), ("nodes", 100_000), ("gpus", 1024)):
        if (value := getattr(args, flag)) is not None and value > most:
            problems.add(f"--{flag.replace('_', '-')} is at most {most}.", got=str(value))
    if args.hours is not None and not 0 < args.hours <= 24 * 366:
        problems.add("--hours is a time limit in hours.", got=str(args.hours), fix="--hours 24")
    if args.target == "single" and args.gpus == 1:  # says what the target means
        args.gpus = None
    for flag, (without, targets) in FOR_TARGETS.items():
        if (
            args.target in TARGET_NAMES
            and args.target not in targets
            and getattr(args, flag) != without
        ):
            what = f"--{flag.replace('_', '-')} has no effect on the target {args.target}."
            problems.add(
                what,
                got=f"it is for {', '.join(targets)}",
                fix="leave it out, or name another target",
            )
    for flag in ("partition", "account"):
        value = getattr(args, flag)
        if value is not None and not _WORD.fullmatch(value):
            problems.add(f"--{flag} is one word.", got=repr(value))
    args.master_addr = args.master_addr and bare_host(args.master_addr)
    if args.master_addr is not None and not is_host(args.master_addr):
        problems.add("--master-addr is not a host.", got=repr(args.master_addr))
    if args.workdir is not None and (
        not args.workdir.isprintable() or args.workdir.startswith("-")
    ):
        problems.add("--workdir is not a folder.", got=repr(args.workdir))
    if args.node_rank is not None and args.node_rank >= args.nodes:
        problems.add("--node-rank is below --nodes.", got=f"{args.node_rank} of {args.nodes}")
    problems.raise_if_any()


def _check_run(args: argparse.Namespace, launch: Launch, resolved: Resolved) -> None:
    """Refuse here what every rank would refuse later: a batch that does not divide, a DeepSpeed JSON that is wrong."""
    from wikillm.core.log import warn
    from wikillm.plan.batch import split_batch
    from wikillm.plan.recipe import check_recipe
    from wikillm.remote.hosts import read_hostfile

    ranks = per_node = None
    if args.target == "hostfile" and launch.hostfile is not None:
        hosts = read_hostfile(launch.hostfile)
        ranks, per_node = sum(host.slots for host in hosts), hosts[0].slots
    elif launch.gpus is not None:
        ranks, per_node = launch.nodes * launch.gpus, launch.gpus
    if ranks is not None:
        split_batch(resolved.config.train, resolved.origins, ranks)
    recipe = resolved.config.deepspeed.config
    is_elsewhere = recipe is not None and args.target in ELSEWHERE and Path(recipe).is_absolute()
    if is_elsewhere and not Path(str(recipe)).exists():
        warn(f"{recipe} is not on this machine, so it is checked when the run starts")
        return
    check_recipe(resolved, ranks=ranks, ranks_per_node=per_node)
