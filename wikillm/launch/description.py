"""Describes a launch in the same form for every target: the run's arguments and its machines."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wikillm.core.errors import ConfigError

DEFAULT_PORT = 29500


@dataclass(frozen=True, slots=True)
class Launch:
    """A run and the machines for it.

    Attributes:
        words: arguments of `train.py`.
        command: the user's command, for the first lines of a script.
        entry: the words by which DeepSpeed's launcher starts `train.py`.
        workdir: the checkout on the target machine.
        without: nodes of the hostfile that are left out.
        variables: environment variables for other machines; `secrets` names the secret ones.
    """

    name: str
    words: tuple[str, ...]
    command: str
    entry: tuple[str, ...] = ("train.py",)
    nodes: int = 1
    gpus: int | None = None  # per node; None: all GPUs of a node
    gpu_ids: tuple[int, ...] = ()  # indices of the GPUs on this machine; (): the first `gpus`
    workdir: str = "."
    master_addr: str | None = None
    master_port: int = DEFAULT_PORT
    node_rank: int | None = None
    max_restarts: int = 0
    restarts_here: bool = False  # `wikillm launch` itself restarts a failed run, see restart.py
    elastic: bool = False
    without: tuple[str, ...] = ()
    hostfile: Path | None = None
    host: str | None = None
    hours: float | None = None
    cpus: int = 8  # per GPU, for targets that request CPUs
    partition: str | None = None
    account: str | None = None
    memory: int | None = None  # bytes per node, for targets that request memory
    storage: str | None = None  # claim, bucket or volume with the data and the run directory
    run_dir: str | None = None  # run.dir as the user wrote it; None: runs/NAME
    image: str | None = None
    gpu_kind: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()

    @property
    def python_entry(self) -> tuple[str, ...]:
        """`entry` for python and torchrun, which take `-m` where DeepSpeed takes `--module`."""
        return ("-m", *self.entry[1:]) if self.entry[0] == "--module" else self.entry

    @property
    def resuming_words(self) -> tuple[str, ...]:
        """`words` for targets that repeat the same command after a failure or a preemption."""
        return self.words if "--resume" in self.words else ("--resume", "auto", *self.words)

    def resumed(self, *, has_saved: bool) -> Launch:
        """The launch that resumes this run from its last checkpoint.

        `--resume PATH` is kept until the run has saved a checkpoint after PATH.
        """
        words = list(self.words)
        if "--resume" in words:
            index = words.index("--resume")
            if words[index + 1] not in ("auto", "never") and not has_saved:
                return self
            del words[index : index + 2]
        return replace(self, words=("--resume", "auto", *words))

    def deepspeed_argv(self) -> tuple[str, ...]:
        """The command of DeepSpeed's launcher on one node. With --quiet it prints only errors."""
        count = () if self.gpus is None else ("--num_gpus", str(self.gpus))
        if self.gpu_ids:
            count = ("--include", f"localhost:{','.join(map(str, self.gpu_ids))}")
        port = ("--master_port", str(self.master_port))
        return ("deepspeed", "--quiet", *count, *port, *self.entry, *self.words)

    def require_gpus(self, tool: str) -> None:
        """Raise ConfigError without the number of GPUs per node, which `tool` has to reserve."""
        if self.gpus is None:
            what = f"{tool} needs the number of GPUs of a node."
            raise ConfigError(what, fix="--gpus-per-node 8")

    def require_mount(self, tool: str, what: str) -> None:
        """Raise ConfigError unless `workdir`, where `tool` mounts the storage, is absolute.

        Args:
            what: the storage, as the message names it.
        """
        if not self.workdir.startswith("/") or not self.workdir.strip("/"):
            what = f"{tool} mounts the {what} at an absolute path."
            raise ConfigError(what, got=repr(self.workdir), fix="--workdir /wikillm")

    def check_run_dir(self) -> None:
        """Raise ConfigError for a run directory outside the storage that is mounted at `workdir`.

        Such a run directory is lost with the machine, so `--resume auto` would find no checkpoint.
        """
        mount = self.workdir.rstrip("/")
        placed = posixpath.normpath(posixpath.join(mount, self.run_dir or "runs"))
        if not placed.startswith(f"{mount}/"):
            raise ConfigError(
                "The run directory is not on the storage: "
                "after a restart --resume auto would find nothing.",
                got=f"run.dir={self.run_dir}; the storage is mounted at {mount}",
                fix=f"run.dir={mount}/runs/{self.name}, or leave run.dir out",
            )


@dataclass(frozen=True, slots=True)
class Step:
    """A process that `--go` starts on this machine."""

    argv: tuple[str, ...]
    stdin: str | None = None
    background: bool = False  # started together with the other steps; `--go` waits for all steps
    node: str | None = None  # the other machine on which it runs, if any


@dataclass(frozen=True, slots=True)
class Rendering:
    """The script and the processes by which a target starts a `Launch`.

    Attributes:
        text: the script that `--print` shows.
        steps: the processes that `--go` starts.
        file: name of the file for `text`, if a tool has to read it.
        writes_environment: `--go` first writes the forwarded variables to workdir/.deepspeed_env.
        notes: lines to print after the steps.
    """

    text: str
    steps: tuple[Step, ...]
    file: str | None = None
    writes_environment: bool = False
    notes: tuple[str, ...] = ()
