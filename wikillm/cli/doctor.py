"""`wikillm doctor`: check whether this machine, or every node of a hostfile, can run a
configuration."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import folder, gpus, host, port
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.core.errors import ConfigError, ExitCode
from wikillm.observe.redact import names_a_secret
from wikillm.remote.environment import forwarded_variables
from wikillm.remote.hosts import Host, read_hostfile

if TYPE_CHECKING:
    from wikillm.doctor.examine import Examination


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    add_machine = parser.add_argument_group("the machines").add_argument
    add_machine("--hostfile", type=Path, metavar="FILE", help="check all its nodes over ssh")
    help = "the checkout on the nodes. Default: this folder"
    add_machine("--workdir", type=folder, metavar="FOLDER", help=help)
    help = "processes on this machine. Default: one per GPU, or one"
    add_machine("--gpus", "--gpus-per-node", type=gpus, metavar="N", help=help)
    help = "host of rank 0. Default: the first node"
    add_machine("--master-addr", type=host, metavar="HOST", help=help)
    add_machine("--master-port", type=port, default=29500, metavar="PORT", help="default 29500")
    add = parser.add_argument
    add("--all", action="store_true", help="also show the checks that passed")
    add("--list", action="store_true", help="list all checks")
    add("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.list:
        _print_list(as_json=args.json)
        return ExitCode.DONE
    from wikillm.doctor.report import lines, to_json

    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        examination = _examine(args)
    if args.json:
        print(json.dumps(to_json(examination), indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines(examination, everything=args.all)))
    return ExitCode.MACHINE if examination.failed else ExitCode.DONE


def _examine(args: argparse.Namespace) -> Examination:
    from wikillm.doctor.examine import examine_here
    from wikillm.doctor.gpus import count_gpus
    from wikillm.doctor.run_needs import needs_of
    from wikillm.doctor.ssh_session import examine_nodes

    resolved = resolve_run_config(args)
    here = socket.gethostname()
    if args.hostfile is None:
        hosts: Sequence[Host] = [Host(here, args.gpus or max(1, count_gpus()))]
    else:
        hosts = read_hostfile(args.hostfile)
    needs = needs_of(
        resolved,
        nodes=len(hosts),
        slots=hosts[0].slots,
        master=args.master_addr or hosts[0].name,
        master_port=args.master_port,
    )
    if args.hostfile is None:
        return examine_here(needs, here)
    return examine_nodes(
        {host.name: host.slots for host in hosts},
        needs,
        workdir=args.workdir or str(Path.cwd()),
        environment={n: v for n, v in forwarded_variables().items() if not names_a_secret(n)},
    )


def _print_list(*, as_json: bool) -> None:
    from wikillm.doctor import nodes
    from wikillm.doctor.checks import checks_in
    from wikillm.doctor.examine import MODULES

    checks = checks_in(nodes, *MODULES)
    rows = [(check.group, check.name, check.about) for check in checks]
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
