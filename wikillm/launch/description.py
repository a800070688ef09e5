"""What is to be launched, the same for every target: the run's words and the machines they go to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PORT = 29500


@dataclass(frozen=True, slots=True)
class Launch:
    """`words` are the arguments of `train.py`; `entry` starts it after a launcher; `workdir` is the checkout over there.

    `variables` are forwarded to other machines; `secrets` names those whose values are secret. `command` is what the user typed, for the first line of a script.
    """

    name: str
    words: tuple[str, ...]
    command: str
    entry: tuple[str, ...] = ("train.py",)
    nodes: int = 1
    gpus: int | None = None  # per node; None: all there are
    workdir: str = "."
    master_addr: str | None = None
    master_port: int = DEFAULT_PORT
    node_rank: int | None = None
    max_restarts: int = 0
    hostfile: Path | None = None
    host: str | None = None
    hours: float | None = None
    cpus: int = 8  # per GPU, where they have to be asked for
    partition: str | None = None
    account: str | None = None
    memory: int | None = None  # bytes per node, where they have to be asked for
    storage: str | None = None  # claim, bucket or volume for data and run directory
    run_dir: str | None = None  # where the user put it; None: runs/NAME
    image: str | None = None
    gpu_kind: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """One process of `--go` on this machine: its argument list, what it reads, and the tool's purpose in a word."""

    argv: tuple[str, ...]
    stdin: str | None = None
    background: bool = False  # started together with the steps around it; all are waited for
    node: str | None = None  # the machine it runs on, where that is another one


@dataclass(frozen=True, slots=True)
class Rendering:
    """`text` is what `--print` shows; `file` the name it gets when a tool must read it; `steps` what `--go` does.

    `writes_environment`: `--go` puts the forwarded variables into workdir/.deepspeed_env first.
    """

    text: str
    steps: tuple[Step, ...]
    file: str | None = None
    writes_environment: bool = False
    notes: tuple[str, ...] = ()
