"""`wikillm launch TARGET`: show how a run would be started (`--print`), or start it (`--go`)."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from wikillm.cli.launch_flags import (
    CLOUD_WORKDIR,
    ELSEWHERE,
    RESTARTS_HERE,
    add_launch_flags,
    check_flags,
    given_flags,
)
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError
from wikillm.core.log import say, warn
from wikillm.core.world import World, free_port
from wikillm.launch.description import DEFAULT_PORT, Launch
from wikillm.launch.kubernetes import MEMORY_PER_GPU
from wikillm.launch.restart import DEFAULT, Launched, keep_running
from wikillm.launch.script import command_line
from wikillm.launch.targets import render, start
from wikillm.observe.redact import names_a_secret
from wikillm.plan.batch import split_batch
from wikillm.plan.check_recipe import check_recipe
from wikillm.remote.environment import forwarded_variables
from wikillm.remote.hosts import read_hostfile

_TARGETS = """\
the target, directly after `launch`:
  single     one GPU of this machine (or its CPU), with the deepspeed launcher
  multi      all GPUs of this machine; --gpus N for N of them, or for N processes on the CPU
             (single, multi and hostfile are restarted after a failure: --max-restarts)
  torchrun   torch's launcher; --max-restarts N restarts the ranks after a failure
  hostfile   several nodes over ssh: --hostfile FILE, --workdir FOLDER shared by all nodes
  ssh        another machine: --host user@machine; copies the checkout, starts in the background
  slurm      an sbatch file: --nodes N --gpus 8; saves and requeues itself before the time limit
  k8s        a Job or PyTorchJob: --image NAME --nodes N --gpus 8 --storage CLAIM
  sky        a SkyPilot task: --gpu H100 --gpus 8 --nodes N --storage s3://BUCKET
  swanlab    a folder for SwanLab Launch: --init, --print, --zip FILE, --submit; followed by words:
             task list | status ID | follow ID | stop ID | fetch ID;  data list | upload FILE|FOLDER
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    parser.description = f"{parser.description}\n\n{_TARGETS}"
    parser.usage = (
        f"{parser.prog} TARGET (--print | --go) [options] [--config NAME|FILE] [--deepspeed NAME] "
        "[KEY=VALUE ...]"
    )
    add = parser.add_argument
    add("target", metavar="TARGET", help="where to start the run; see above")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", dest="show", help="show what would run")
    action.add_argument("--go", action="store_true", help="run it")
    add("--resume", metavar="auto|never|PATH", help="as in `wikillm train`")
    add("--allow-change", action="store_true", help="as in `wikillm train`")
    add_launch_flags(parser)


def run(args: argparse.Namespace) -> int:
    check_flags(args)
    if args.target == "swanlab":
        from wikillm.cli.launch_swanlab import run_swanlab

        return run_swanlab(args)
    resolved = resolve_run_config(args)
    launch = describe(args, resolved)
    rendering = render(args.target, launch)
    _check_run(args, launch, resolved)
    if args.show:
        print(rendering.text, end="")
        return 0
    if not args.go:
        fix = f"wikillm launch {args.target} ... --print\nor --go"
        raise ConfigError("`wikillm launch` needs --print or --go.", fix=fix)
    if not launch.restarts_here:
        return start(launch, rendering)

    def start_once(again: Launch, launched: Launched) -> int:
        return start(again, render(args.target, again), launched)

    def alert(code: int, reason: str) -> None:
        from wikillm.supervise.settings import alerts_of, settings_of

        cfg = resolved.config
        settings = settings_of(cfg.train, cfg.run, cfg.alerts)
        alerts_of(World(), settings).end("failed", code, reason, None)

    return keep_running(launch, start_once, lambda again: _check_run(args, again, resolved), alert)


def describe(args: argparse.Namespace, resolved: Resolved) -> Launch:
    """The description that every target renders."""
    # The arguments of train.py. Ranks that torchrun restarts must resume.
    words = []
    restarts = args.max_restarts
    if restarts is None:
        restarts = DEFAULT if args.target in (*RESTARTS_HERE, "slurm") else 0
    by_torchrun = restarts and args.target == "torchrun" and args.resume is None
    resume = "auto" if by_torchrun else args.resume
    for flag, value in (("config", args.config), ("deepspeed", args.deepspeed), ("resume", resume)):
        words += [f"--{flag}", value] if value else []
    words += ["--allow-change"] if args.allow_change else []
    is_checkout = Path("train.py").is_file() and Path("wikillm").is_dir()
    # On other machines the checkout has its own path, and the run's variables are passed on.
    runs_here = args.target not in ELSEWHERE
    elsewhere = {"ssh": "wikillm", "k8s": CLOUD_WORKDIR, "sky": CLOUD_WORKDIR}
    variables = {} if runs_here else forwarded_variables()
    secrets = (name for name, value in variables.items() if names_a_secret(name) or "@" in value)
    return Launch(
        name=resolved.config.run.name,
        words=(*words, *args.rest),
        command=_command(args, words),
        entry=("train.py",) if is_checkout else ("--module", "wikillm", "train"),
        nodes=args.nodes,
        gpus=1 if args.target == "single" else args.gpus,
        workdir=args.workdir or elsewhere.get(args.target) or str(Path.cwd()),
        master_addr=args.master_addr,
        master_port=args.master_port
        or _port(is_started_here=args.go and runs_here and args.nodes == 1),
        node_rank=args.node_rank,
        max_restarts=restarts,
        restarts_here=bool(restarts) and args.target in RESTARTS_HERE,
        elastic=args.elastic,
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
        secrets=frozenset(secrets),
    )


def _memory(args: argparse.Namespace, resolved: Resolved) -> int:
    """Bytes that a pod requests: --memory, or 32 GiB per GPU plus the states offloaded to the
    host."""
    from wikillm.doctor.run_needs import needs_of

    gpus = args.gpus or 1
    if args.memory is not None or resolved.config.deepspeed.config is None:
        return int(args.memory or MEMORY_PER_GPU * gpus)
    try:
        needs = needs_of(resolved, nodes=args.nodes, slots=gpus)
    except ConfigError:  # `_check_run` refuses it with its own message
        return MEMORY_PER_GPU * gpus
    return MEMORY_PER_GPU * gpus + needs.host_memory


def _command(args: argparse.Namespace, words: list[str]) -> str:
    """This command as one line without secrets, for the header of every script."""
    shown = ["wikillm", "launch", args.target]
    for flag, value in given_flags(args).items():
        shown += [flag, str(value)]
    return command_line([*shown, *words, *args.rest, "--print"])


def _port(*, is_started_here: bool) -> int:
    """The default port; a free port if the run starts here and the default port is in use."""
    if not is_started_here:
        return DEFAULT_PORT
    with socket.socket() as probe:
        try:
            probe.bind(("", DEFAULT_PORT))
            return DEFAULT_PORT
        except OSError:
            port = free_port()
    say(f"port {DEFAULT_PORT} is in use: the rendezvous port is {port}")
    return port


def _check_run(args: argparse.Namespace, launch: Launch, resolved: Resolved) -> None:
    """Raises ConfigError for a batch or a DeepSpeed JSON that every rank would refuse later."""
    ranks = per_node = None
    if args.target == "hostfile" and launch.hostfile is not None:
        hosts = [h for h in read_hostfile(launch.hostfile) if h.name not in launch.without]
        per_node = hosts[0].slots
        ranks = sum(host.slots for host in hosts)
    elif launch.gpus is not None:
        per_node = launch.gpus
        ranks = launch.nodes * launch.gpus
    if ranks is not None:
        split_batch(resolved.config.train, resolved.origins, ranks)
    recipe = resolved.config.deepspeed.config
    is_elsewhere = recipe is not None and args.target in ELSEWHERE and Path(recipe).is_absolute()
    if is_elsewhere and not Path(str(recipe)).exists():
        warn(f"{recipe} is not on this machine, so it is checked when the run starts")
        return
    check_recipe(resolved, ranks=ranks, ranks_per_node=per_node)
