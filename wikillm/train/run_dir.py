"""The run directory: its lock, its identity, and the checks before anything is written into it.

    RUN/  config.resolved.yaml  ds_config.resolved.json  plan.json  environment.json  run.json
          data.json  tokenizer/  metrics.jsonl  events.jsonl  ledger.jsonl  exit.json  outcome.json
          ranks/  diverged.json  skips.json  stop.json  stop  save  .secret  logs/rank_*.log
          checkpoints/  swanlog/  report.html

A run holds an flock on its directory, so a killed run leaves no stale lock. With several nodes the
directory must be on a file system that all nodes share (see `start_checks.check_shared_folder`).
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
from wikillm.checkpoints.retention import Keep, bytes_freed_at_start, clear_leftovers
from wikillm.core.errors import CheckpointError, ConfigError, MachineError, StoppedError
from wikillm.core.files import nearest_existing, read_regular, write_json
from wikillm.core.lock import FileLock
from wikillm.core.units import format_size
from wikillm.core.world import World
from wikillm.observe.redact import redact_argument
from wikillm.observe.swanlab import new_run_id
from wikillm.supervise.records import stop_path
from wikillm.supervise.requests import stop_file

_OWN_NAMES = """
    config.resolved.yaml ds_config.resolved.json plan.json environment.json run.json data.json
    tokenizer metrics.jsonl events.jsonl ledger.jsonl exit.json outcome.json diverged.json
    skips.json ranks stop.json logs checkpoints swanlog samples export stop save report.html
    restart.json
"""
"""Names that a run, or `wikillm demo`, writes into its directory."""
_LAUNCHER_FILES = (".log", ".out", ".err", ".pid", "lost+found")
"""Suffixes of files that launchers, and file systems, create before the run starts."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run, on every rank. Only rank 0 calls `claim`."""

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
        """Refuse a folder with files that are not a run's. (rank 0)

        A launcher's log files and the run's own token store are accepted.

        Raises ConfigError, which names up to five of the files.
        """
        folder = self.path.resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            raise ConfigError(
                f"{self.path} cannot be a run directory.",
                got=f"{existing} is not a folder",
                fix="name a new or empty folder: run.dir=FOLDER",
            )
        foreign = []
        if folder.is_dir() and not self.identity.exists():
            own_names = {*_OWN_NAMES.split(), _name_below(folder, store)}
            names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
            foreign = [n for n in names if n not in own_names and not n.endswith(_LAUNCHER_FILES)]
        if foreign:
            more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
            new = self.path / "run"
            while new.exists():  # such as /run
                new = new.with_name(f"{new.name}-2")
            raise ConfigError(
                f"{self.path} is not a run directory: it holds other files.",
                got=", ".join(foreign[:5]) + more,
                fix=f"name a new or empty folder: run.dir={new}",
            )

    def claim(self, *, resume: bool) -> FileLock:
        """Lock the directory for this process and remove leftovers of a killed run. (rank 0)

        Raises:
            ConfigError: another run is using the directory, it holds an earlier run and `resume`
                is False, or a pipe or a device is in the place of a file.
            MachineError: the directory cannot be written.
        """
        # The lock comes first: nothing is read or removed while another run may write.
        lock = FileLock(self.path / ".lock")
        try:
            taken = lock.try_acquire()
        except OSError as error:
            raise MachineError(
                f"The run directory {self.path} cannot be written.",
                got=f"{error.strerror}; nearest existing folder: {nearest_existing(self.path)}",
                fix="name a folder you can write to: run.dir=FOLDER",
            ) from None
        if not taken:
            raise ConfigError(
                f"Another run is using {self.path}.",
                got=lock.holder(),
                fix=f"stop it: wikillm stop {shlex.quote(str(self.path))}\n"
                "or wait for it, or choose another directory: run.dir=FOLDER",
            )
        if special := self._special_file():
            lock.release()
            raise ConfigError(
                f"{special} is neither a file nor a folder.",
                got="a pipe, a device or a socket",
                fix=f"remove it: rm {shlex.quote(str(special))}",
            )
        checkpoints = list_checkpoints(self.checkpoints)
        if not resume and (checkpoints or self.metrics.exists()):
            lock.release()
            raise ConfigError(
                f"{self.path} holds an earlier run.",
                got=f"{len(checkpoints)} checkpoints and {self.metrics.name}",
                fix=f"resume it: --resume auto\nor start another one: run.dir={self.path}-2",
            )
        self._remove_last_start(lock)
        clear_leftovers(self.checkpoints)
        for folder in (self.checkpoints, self.path / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        return lock

    def _special_file(self) -> Path | None:
        """A pipe, device or socket in the place of a file or folder, whose opening would block.

        Files that are only appended to (metrics, events, ledger) may be pipes.
        """
        names = sorted({*_OWN_NAMES.split()} - {"metrics.jsonl", "events.jsonl", "ledger.jsonl"})
        paths = [*(self.path / name for name in names), *(self.path / "logs").glob("*")]
        return next((p for p in paths if p.exists() and not (p.is_file() or p.is_dir())), None)

    def check_room(self, checkpoint: int, keep: Keep) -> None:
        """Refuse a disk without room for one more checkpoint. (rank 0)

        Leftovers, and checkpoints that `make_room` would remove, count as free.

        Args:
            checkpoint: size of one checkpoint in bytes.
            keep: which checkpoints stay on the disk.

        Raises MachineError.
        """
        free = shutil.disk_usage(self.path).free
        removable = bytes_freed_at_start(self.checkpoints, keep)
        if free + removable >= checkpoint:
            return
        kept = min(max(1, keep.newest - 1), len(list_checkpoints(self.checkpoints)))
        fewer = f"train.save_total_limit={kept - 1}, or " if kept > 1 else ""
        more = ""
        if removable:
            more = f", and {format_size(removable)} more when superfluous checkpoints are removed"
        raise MachineError(
            f"There is no room for a checkpoint in {self.checkpoints}.",
            got=f"a checkpoint takes {format_size(checkpoint)}; {format_size(free)} are free{more}",
            fix=f"{fewer}free some room, or run.dir=FOLDER on a larger disk",
        )

    def _remove_last_start(self, lock: FileLock) -> None:
        """Remove the last start's process records.

        Raises StoppedError when torchrun restarts a run that was asked to stop.
        """
        stop = stop_path(self.path)
        is_stopped = stop.exists() or stop_file(self.path).exists()
        if is_stopped and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            lock.release()
            raise StoppedError(
                "This run was stopped on request, and torchrun has restarted it.",
                fix="start the same command again with --resume auto",
            )
        for path in (self.path / "exit.json", stop, *(self.path / "ranks").glob("*")):
            path.unlink(missing_ok=True)

    def identify(self) -> dict[str, Any]:
        """The run's id and tracker id, created at the first start and kept by resumes. (rank 0)"""
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
            identity = json.loads(read_regular(self.identity))
            return {"id": str(identity["id"]), "tracker": str(identity["tracker"]), **identity}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.identity} does not say which run this is.",
                got=repr(error),
                fix="restore it, or remove it (the tracker then shows a new experiment): "
                f"rm {self.identity}",
            ) from None


def refuse_before_supervision(run: Path, store: str | None, world: World) -> None:
    """The checks that need neither a write to the directory nor other ranks. (all ranks)

    Raises:
        ConfigError: the run directory holds other files.
        MachineError: MASTER_ADDR or MASTER_PORT is missing or invalid.
    """
    world.check_rendezvous()
    if world.is_main:
        RunDir(run).refuse_foreign(Path(store) if store else None)


def _name_below(folder: Path, path: Path | None) -> str:
    """The name in `folder` that leads to `path`; "" where `path` is not below it."""
    if path is None or not path.resolve().is_relative_to(folder):
        return ""
    return next(iter(path.resolve().relative_to(folder).parts), "")


def describe_environment() -> dict[str, Any]:
    """Versions, machine and git revision. No environment variables: they hold secrets."""
    packages = "torch transformers deepspeed accelerate tokenizers numpy swanlab wikillm"
    return {
        "command": [os.path.basename(sys.argv[0]), *map(redact_argument, sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in packages.split()},
        "git": _git_revision(),
    }


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
    options = ["--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    command = ["git", "-C", str(source), "describe", *options]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return completed.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
