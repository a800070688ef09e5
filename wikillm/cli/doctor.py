"""`wikillm doctor`: check whether this machine, or every node of a hostfile, can run a
configuration."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import folder, gpus, host, port
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.core.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved
    from wikillm.doctor.examine import Examination
    from wikillm.doctor.facts import NodeFacts
    from wikillm.doctor.needs import Needs


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    group = parser.add_argument_group("the machines")
    option = group.add_argument
    option("--hostfile", type=Path, metavar="FILE", help="check all its nodes over ssh")
    checkout = "the checkout on the nodes. Default: this folder"
    option("--workdir", type=folder, metavar="FOLDER", help=checkout)
    option(
        "--gpus",
        "--gpus-per-node",
        type=gpus,
        metavar="N",
        help="processes on this machine. Default: one per GPU, or one",
    )
    first = "host of rank 0. Default: the first node"
    option("--master-addr", type=host, metavar="HOST", help=first)
    option("--master-port", type=port, default=29500, metavar="PORT", help="default 29500")
    parser.add_argument("--all", action="store_true", help="also show the checks that passed")
    parser.add_argument("--list", action="store_true", help="list all checks")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    from wikillm.doctor.report import lines, to_json

    _check(args)
    if args.list:
        _print_list(as_json=args.json)
        return ExitCode.DONE
    resolved = resolve_run_config(args)
    examination = _examine_nodes(args, resolved) if args.hostfile else _examine_here(args, resolved)
    if args.json:
        print(json.dumps(to_json(examination), indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines(examination, everything=args.all)))
    return ExitCode.MACHINE if examination.failed else ExitCode.DONE


def _examine_here(args: argparse.Namespace, resolved: Resolved) -> Examination:
    from wikillm.doctor.examine import examine_here
    from wikillm.doctor.needs import needs_of, request_of

    # An invalid configuration is refused before the machine is examined.
    needs_of(resolved, nodes=1, slots=args.gpus or 1)

    def needs_for(facts: NodeFacts) -> Needs:
        slots = args.gpus or max(1, facts.gpu_count)
        return needs_of(resolved, nodes=1, slots=slots, has_gpu=facts.gpu_count > 0)

    request = request_of(resolved, master=args.master_addr or "", master_port=args.master_port)
    return examine_here(request, needs_for)


def _examine_nodes(args: argparse.Namespace, resolved: Resolved) -> Examination:
    from wikillm.doctor.examine import examine_nodes
    from wikillm.doctor.needs import needs_of, request_of
    from wikillm.observe.redact import names_a_secret
    from wikillm.remote.environment import forwarded
    from wikillm.remote.hosts import read_hostfile

    hosts = read_hostfile(args.hostfile)
    master = args.master_addr or hosts[0].name
    return examine_nodes(
        {host.name: host.slots for host in hosts},
        request_of(resolved, master=master, master_port=args.master_port),
        needs_of(resolved, nodes=len(hosts), slots=hosts[0].slots),
        workdir=args.workdir or str(Path.cwd()),
        environment={n: value for n, value in forwarded().items() if not names_a_secret(n)},
    )


def _print_list(*, as_json: bool) -> None:
    from wikillm.doctor.questions import listed

    rows = listed()
    if as_json:
        print(json.dumps([{"group": g, "name": n, "about": a} for g, n, a in rows], indent=2))
        return
    width = max(len(name) for _, name, _ in rows)
    for group, name, about in rows:
        print(f"{group:<14}{name:<{width}}  {about}")


def _check(args: argparse.Namespace) -> None:
    if args.hostfile is not None and args.gpus is not None:
        what = "--gpus describes this machine; a hostfile gives the slots of its nodes."
        raise ConfigError(what, got=str(args.gpus), fix="slots=N in the hostfile")
    if args.workdir is not None and args.hostfile is None:
        what = "--workdir is for the nodes of a hostfile."
        raise ConfigError(what, got=args.workdir, fix="--hostfile FILE")
