"""`wikillm train`; `deepspeed train.py`, `torchrun train.py` and `python train.py` run the same
command."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.core.errors import ConfigError, StoppedError, WikiLLMError
from wikillm.core.log import timed

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved
    from wikillm.core.world import World
    from wikillm.supervise.signals import StopSignals
    from wikillm.supervise.supervisor import Supervisor

from wikillm.cli.arguments import add_trust

_IMPORTING = "starting   importing torch, transformers and DeepSpeed"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    add = parser.add_argument
    help = "resume from the newest complete checkpoint of run.dir (auto), or from PATH"
    add(
        "--resume",
        "--resume_from_checkpoint",
        nargs="?",
        const="auto",
        default="never",
        metavar="auto|never|PATH",
        help=help,
    )
    help = "on resume, accept a horizon or batch that differs from the checkpoint's"
    add("--allow-change", action="store_true", help=help)
    add_trust(parser)
    add("--dry-run", action="store_true", help="build the token store, show the plan, and stop")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from wikillm.core.world import adopt_open_mpi
    from wikillm.supervise.exit_file import let_rank_0_report_first
    from wikillm.supervise.signals import installed

    adopt_open_mpi()
    with installed() as signals:  # before the slow imports, so that a stop works during them
        try:
            with signals.as_error():
                return _train(args, signals)
        except WikiLLMError as error:
            # Only rank 0 reports a stop. Other ranks may get the launcher's signal because rank 0
            # has failed.
            if isinstance(error, StoppedError) and os.environ.get("RANK", "0") != "0":
                return int(error.exit_code)
            let_rank_0_report_first(error)
            raise


def _train(args: argparse.Namespace, signals: StopSignals) -> int:
    from wikillm.config.deepspeed import read_deepspeed
    from wikillm.core.world import World
    from wikillm.supervise.settings import is_local, settings_of
    from wikillm.supervise.supervisor import supervise
    from wikillm.train.run_dir import refuse_before_supervision

    resolved = resolve_run_config(args)
    if recipe := resolved.config.deepspeed.config:
        read_deepspeed(recipe)  # a wrong name ends here, not after the imports
    if args.dry_run:
        with timed(_IMPORTING):
            from wikillm.train.run import dry_run

        dry_run(resolved)
        return 0
    world = World.from_env()
    cfg = resolved.config
    settings = settings_of(cfg.train, cfg.run, cfg.alerts)
    refuse_before_supervision(settings.run, cfg.data.store, world)
    check_machine(resolved, world)
    if not is_local(world, settings):
        return _pretrain(args, resolved, signals, None)
    with (
        supervise(world, settings, dict) as supervisor,
        signals.as_error(),
    ):  # before the imports, too
        return _pretrain(args, resolved, signals, supervisor)


def check_machine(resolved: Resolved, world: World) -> None:
    """Raises MachineError if a check fails that would end the run. (only local rank 0 checks)"""
    from wikillm.doctor.preflight import refuse_broken_machine
    from wikillm.doctor.run_needs import needs_of

    if world.local_rank:
        return
    try:
        master = os.environ.get("MASTER_ADDR", "")
        needs = needs_of(resolved, nodes=world.nodes, slots=world.local_size, master=master)
    except ConfigError:  # refused later by the plan, which knows the size of the data
        return
    refuse_broken_machine(needs)


def _pretrain(
    args: argparse.Namespace,
    resolved: Resolved,
    signals: StopSignals,
    supervisor: Supervisor | None,
) -> int:
    from wikillm.core.held_output import held_output

    with held_output():  # keeps the output of libraries until the rank's log is open
        with timed(_IMPORTING):
            from wikillm.train.run import pretrain

        pretrain(
            resolved,
            resume=_resume(args.resume),
            allow_change=args.allow_change,
            signals=signals,
            supervisor=supervisor,
            trust_checkpoint=args.trust_checkpoint,
        )
    return 0


def _resume(text: str) -> str:
    """Accept a boolean, as Hugging Face does: `--resume_from_checkpoint True`."""
    return {"true": "auto", "false": "never"}.get(text.lower(), text)
