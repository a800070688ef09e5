"""The run directory: who owns it, what is written into it before step 1.

    RUN/  config.resolved.yaml  ds_config.resolved.json  plan.json  environment.json  run.json  data.json  tokenizer/
          metrics.jsonl  events.jsonl  exit.json  outcome.json  ranks/  stop.json  .secret  logs/rank_*.log  checkpoints/
          swanlog/

One run at a time holds a directory (an flock, so a killed run leaves no stale lock). On several nodes the
directory must lie on a folder that all of them see; the start-up guard checks it.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wikillm.checkpoints.layout import STAGING, list_checkpoints
from wikillm.checkpoints.retention import clear_leftovers, room_to_come
from wikillm.config.resolved import Resolved
from wikillm.core.errors import CheckpointError, ConfigError, MachineError, StoppedError
from wikillm.core.files import nearest_existing, write_json
from wikillm.core.lock import FileLock
from wikillm.core.units import format_size
from wikillm.core.world import World
from wikillm.observe.redact import (
    HIDDEN,
    environment_secrets,
    names_a_secret,
    redact_text,
    without_queries,
)
from wikillm.observe.swanlab import new_run_id
from wikillm.supervise.records import stop_path
from wikillm.supervise.supervisor import settings_of

OWN_NAMES = frozenset(
    {
        "config.resolved.yaml", "ds_config.resolved.json", "plan.json", "environment.json", "run.json", "data.json",
        "tokenizer", "metrics.jsonl", "events.jsonl", "exit.json", "outcome.json", "ranks", "stop.json", "logs",
        "checkpoints", "swanlog", "samples", "export",
    }
)  # fmt: skip
"""What a run writes into its directory, `wikillm demo` included."""
LAUNCHERS_FILES = (".log", ".out", ".err", ".pid", "lost+found")
"""Ends of the names of what launchers, and file systems, put into a folder before the run starts."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. Made on every rank; `claim` is for the main one."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def staging(self) -> Path:
        return self.checkpoints / STAGING

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def identity(self) -> Path:
        return self.path / "run.json"

    def log_file(self, rank: int) -> Path:
        return self.path / "logs" / f"rank_{rank}.log"

    def refuse_foreign(self, store: Path | None = None) -> None:
        """Refuse a folder that holds other things than a run: their names would mix with the run's. (rank 0)

        A launcher's log files may lie there, and the run's own token store.

        Raises ConfigError with some of what is there.
        """
        place = self.path.resolve()
        standing = next(path for path in (place, *place.parents) if path.exists())
        if not standing.is_dir():
            raise ConfigError(
                f"{self.path} cannot be a run directory.",
                got=f"{standing} is not a folder",
                fix="name a new or empty folder: run.dir=FOLDER",
            )
        if place == place.parent or self.identity.exists() or not place.is_dir():
            foreign = [str(place)] if place == place.parent else []
        else:
            names = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
            own = {*OWN_NAMES, _first_part(store, place)}
            foreign = [
                name for name in names if name not in own and not name.endswith(LAUNCHERS_FILES)
            ]
        if foreign:
            raise ConfigError(
                f"{self.path} is no run directory: it holds other things.",
                got=", ".join(foreign[:5])
                + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""),
                fix=f"name a new or empty folder: run.dir={'FOLDER' if place == place.parent else self.path / 'run'}",
            )

    def claim(self, *, resume: bool) -> FileLock:
        """Take the directory for this process and clear what a killed run left half done. (rank 0)

        Raises:
            ConfigError: another run is using it, or it holds an earlier run and this one does not resume.
            MachineError: it cannot be written.
        """
        lock = FileLock(self.path / ".lock")
        try:
            taken = lock.try_acquire()
        except OSError as error:
            raise MachineError(
                f"The run directory {self.path} cannot be written.",
                got=f"{error.strerror}; the nearest existing folder is {nearest_existing(self.path)}",
                fix="name a folder you can write to: run.dir=FOLDER",
            ) from None
        if not taken:
            raise ConfigError(
                f"Another run is using {self.path}.",
                got=lock.holder(),
                fix=f"stop it: wikillm stop {shlex.quote(str(self.path))}\nor wait for it, or choose another directory: run.dir=FOLDER",
            )
        if not resume and (list_checkpoints(self.checkpoints) or self.metrics.exists()):
            lock.release()
            raise ConfigError(
                f"{self.path} holds an earlier run.",
                got=f"{len(list_checkpoints(self.checkpoints))} checkpoints and {self.metrics.name}",
                fix=f"go on with it: --resume auto\nor start another one: run.dir={self.path}-2",
            )
        self._forget_last_start(lock)
        clear_leftovers(self.checkpoints)
        for folder in (self.checkpoints, self.path / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        return lock

    def check_room(self, checkpoint: int, keep: int) -> None:
        """Refuse a disk on which not one more checkpoint fits, after leftovers and superfluous ones have gone. (rank 0)

        Args:
            checkpoint: bytes of one.
            keep: checkpoints that stay; what an earlier start left above it goes before the first save.

        Raises MachineError.
        """
        free, to_come = shutil.disk_usage(self.path).free, room_to_come(self.checkpoints, keep)
        if free + to_come >= checkpoint:
            return
        standing = len(list_checkpoints(self.checkpoints))
        fewer = (
            f"train.save_total_limit={min(keep, standing) - 1}, or "
            if min(keep, standing) > 1
            else ""
        )
        raise MachineError(
            f"There is no room for a checkpoint in {self.checkpoints}.",
            got=f"a checkpoint takes {format_size(checkpoint)}; {format_size(free)} are free"
            + (
                f", and {format_size(to_come)} more when superfluous checkpoints have gone"
                if to_come
                else ""
            ),
            fix=f"{fewer}free some room, or run.dir=FOLDER on a larger disk",
        )

    def _forget_last_start(self, lock: FileLock) -> None:
        """What the last start left about its processes. Raises StoppedError where torchrun restarts what was stopped."""
        if (
            stop_path(self.path).exists()
            and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        ):
            lock.release()
            raise StoppedError(
                "`wikillm stop` ended this run; torchrun has started it again.", fix="--resume auto"
            )
        for path in (
            self.path / "exit.json",
            stop_path(self.path),
            *(self.path / "ranks").glob("*"),
        ):
            path.unlink(missing_ok=True)

    def identify(self) -> dict[str, Any]:
        """The run's lasting identity (id, tracker id); made at the first start, kept over resumes. (rank 0)"""
        if self.identity.exists():
            return self._read_identity()
        identity = {
            "id": uuid.uuid4().hex,
            "tracker": new_run_id(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(self.identity, identity)
        return identity

    def _read_identity(self) -> dict[str, Any]:
        try:
            found = json.loads(self.identity.read_text(encoding="utf-8"))
            return {"id": str(found["id"]), "tracker": str(found["tracker"]), **found}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.identity} does not say which run this is.",
                got=repr(error),
                fix=f"restore it, or remove it: the run then goes on under a new name in the tracker: rm {self.identity}",
            ) from None


def refuse_before_supervision(resolved: Resolved, world: World) -> None:
    """What is refused before anything is written into the run directory, or anybody is waited for. (all ranks)

    Raises:
        ConfigError: the run directory holds other things.
        MachineError: the launcher's variables do not say where the ranks meet.
    """
    world.check_meeting_place()
    if world.is_main:
        store = resolved.config.data.store
        RunDir(settings_of(resolved.config.train, resolved.config.run).run).refuse_foreign(
            Path(store) if store else None
        )


def _first_part(path: Path | None, folder: Path) -> str:
    """The name in `folder` on the way to `path`; "" where it does not lie below."""
    if path is None or not path.resolve().is_relative_to(folder):
        return ""
    return next(iter(path.resolve().relative_to(folder).parts), "")


def describe_environment() -> dict[str, Any]:
    """Versions, machine and git revision, for environment.json. Holds no environment variables: they have secrets."""
    packages = (
        "torch",
        "transformers",
        "deepspeed",
        "accelerate",
        "tokenizers",
        "numpy",
        "swanlab",
        "wikillm",
    )
    return {
        "command": [os.path.basename(sys.argv[0]), *map(_without_secret, sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in packages},
        "git": _git_revision(),
    }


def _without_secret(argument: str) -> str:
    """`--api_key=abc` -> `--api_key=***`, `https://user:pass@host` -> `https://***@host`; `data.tokenizer=x` stays."""
    name, equals, _ = argument.partition("=")
    if equals and names_a_secret(name.lstrip("-")):
        return f"{name}={HIDDEN}"
    return without_queries(redact_text(argument, environment_secrets()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """`1a2b3c4` or `1a2b3c4+changes` of the source tree; None for an installed wheel."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(source),
        "describe",
        "--always",
        "--dirty=+changes",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
