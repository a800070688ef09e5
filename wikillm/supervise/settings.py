"""Settings of supervision, and the first message to each agent, which contains these settings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from wikillm.config.schema import RunSection
from wikillm.config.schema_alerts import AlertsSection
from wikillm.config.schema_train import TrainSection
from wikillm.core.world import World
from wikillm.supervise.alerts import Alerts
from wikillm.supervise.membership import Limits
from wikillm.supervise.network import Route
from wikillm.supervise.records import Process
from wikillm.supervise.secret import run_secret
from wikillm.supervise.wire import Message

NEVER = 1e9  # seconds


@dataclass(frozen=True, slots=True)
class SuperviseSettings:
    """The settings of supervision in a configuration."""

    mode: Literal["auto", "on", "off"]  # train.supervise
    limits: Limits
    run: Path  # the run directory, the same on every node
    name: str  # of the run
    alerts: AlertsSection


def settings_of(train: TrainSection, run: RunSection, alerts: AlertsSection) -> SuperviseSettings:
    """The settings of supervision, from the sections of a configuration."""
    limits = Limits(
        train.rendezvous_seconds,
        train.lost_seconds,
        train.stall_seconds,
        train.exit_timeout_seconds,
    )
    return SuperviseSettings(train.supervise, limits, run_folder(run), run.name, alerts)


def run_folder(run: RunSection) -> Path:
    """The run directory."""
    return Path(run.dir or f"runs/{run.name}")


def is_local(world: World, settings: SuperviseSettings) -> bool:
    """Whether all ranks are on this machine, so that agents need neither a network nor a secret."""
    return world.size == world.local_size and settings.mode != "on"


def alerts_of(world: World, settings: SuperviseSettings) -> Alerts:
    """The alerts that this rank or its agent may send."""
    section = settings.alerts.model_dump(mode="json")
    section["channels"] = settings.alerts.channels
    # Rank 0 sends. If it is lost, the second node's first rank sends, or rank 1 on one node.
    next_rank = world.local_size if world.size > world.local_size else 1
    is_first = world.rank in (0, next_rank)
    return Alerts(section, settings.name, str(settings.run.absolute()), world.rank, is_first)


def agent_setup(
    world: World,
    settings: SuperviseSettings,
    route: Route | None,
    port: int | None,
    versions: dict[str, str],
    environ: Mapping[str, str],
) -> Message:
    """The first message to the agent. `route` and `port` are None if all ranks are local."""
    route = route or Route(None, "", "")
    limits = settings.limits
    # `job` is equal on all ranks of this start and differs from other runs and earlier starts. A
    # single rank that was started by hand has no port, so it uses its pid.
    endpoint = port or environ.get("MASTER_PORT", "")
    if world.size == 1 and port is None:
        endpoint = f"pid {os.getpid()}"
    restart = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    parts = [str(settings.run.absolute()), str(endpoint), str(world.size)]
    job = "\0".join([*parts, *(environ.get(name, "") for name in restart)])
    if is_local(world, settings):  # the kernel reports the peer's user: no secret is needed
        secret = hashlib.sha256(job.encode()).hexdigest()
        limits = replace(limits, rendezvous=NEVER, lost=NEVER)
    else:
        secret = run_secret(settings.run, environ).hex()
    return {
        "rank": world.rank,
        "local_rank": world.local_rank,
        "world_size": world.size,
        "local_size": world.local_size,
        "pid": os.getpid(),
        "process": asdict(Process.here(os.getpid())),
        "limits": asdict(limits),
        "master": environ.get("MASTER_ADDR"),
        "master_address": route.master,
        "master_port": port,
        "address": route.address,
        "interface": route.interface,
        "job": job,
        "secret": secret,
        "versions": versions,
        "nodes": [name for name in environ.get("WIKILLM_NODES", "").split(",") if name],
        "alerts": alerts_of(world, settings).arguments(),
    }
