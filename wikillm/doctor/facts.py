"""Facts about a node: plain values, gathered there, sent as JSON, judged where the command runs.

Sizes are bytes, times are seconds. A section that could not be gathered is None, and `errors` says
why. Values of environment variables that name a secret are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class SoftwareFacts:
    """`packages`: installed versions, None where missing; `ranges`: supported versions.

    `torch_cuda`: CUDA version of the installed torch, "" for a CPU build, None without torch.
    """

    python: str
    executable: str
    packages: dict[str, str | None]
    ranges: dict[str, str]
    torch_cuda: str | None
    code_folder: str
    code_digest: str


@dataclass(frozen=True, slots=True)
class GpuCard:
    """One GPU as nvidia-smi reports it, None for N/A. Memory in MiB."""

    index: int
    name: str
    memory_total: int | None = None
    memory_used: int | None = None
    compute_capability: float | None = None
    ecc: int | None = None  # uncorrected errors since the driver was loaded
    mig: bool | None = None
    compute_mode: str | None = None


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """`hardware`: NVIDIA GPUs on the PCI bus. `smi`: "" when nvidia-smi works, else its error."""

    hardware: int
    smi: str
    driver: str = ""
    driver_cuda: str = ""
    cards: tuple[GpuCard, ...] = ()

    @property
    def kinds(self) -> str:
        return ", ".join(sorted({card.name for card in self.cards})) or "no GPU"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Limits are soft limits. `identity` is equal only for two names of one machine."""

    hostname: str
    identity: str
    user: str
    cores: int
    cpu_quota: float | None
    load: float
    memory: int
    memory_available: int
    swap: int
    cgroup_limit: int | None
    cgroup_used: int | None
    open_files: int
    locked_memory: int
    shm_free: int | None


@dataclass(frozen=True, slots=True)
class CompilerFacts:
    """The tools that compile DeepSpeed's ops, and the folder for compiled ops."""

    cxx: str
    has_headers: bool
    ninja: str
    nvcc: str
    nvcc_cuda: str
    folder: str
    is_writable: bool
    is_executable: bool


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A folder and the file system below it. `existing`: the folder, or its nearest parent."""

    path: str
    existing: str
    is_writable: bool
    free: int
    inodes_free: int | None
    kind: str


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """`data`: a digest for each source file; `data_bytes`: the predicted size of the store.

    Of the run's checkpoints, `checkpoints_stay` bytes stay, `checkpoints_go` are removed before the
    first save.
    """

    run: FolderFacts
    store: FolderFacts
    has_store: bool
    data: dict[str, str]
    data_bytes: int
    data_error: str
    checkpoints_stay: int = 0
    checkpoints_go: int = 0

    @property
    def sources(self) -> str | None:
        digests = "-".join(sorted(set(self.data.values())))
        return f"{len(self.data)} files, {digests[:33]}" if self.data else None


@dataclass(frozen=True, slots=True)
class NetworkCard:
    """`speed` in Mbit/s, None for virtual cards."""

    name: str
    is_up: bool
    mtu: int
    speed: int | None
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """`master`: name of the host of rank 0. `route`: (card, own address) on the way there."""

    hostname: str
    hostname_addresses: tuple[str, ...]
    cards: tuple[NetworkCard, ...]
    master: str
    master_addresses: tuple[str, ...]
    route: tuple[str, str] | None
    master_port: int
    port_error: str  # "" when the port is free
    infiniband: tuple[tuple[str, str], ...]  # (device:port, state)

    @property
    def outer_card(self) -> NetworkCard | None:
        """The card that leads to the other nodes.

        If the route is `lo`, because the master's name is wrong, it is the only other card.
        """
        routed = [card for card in self.cards if self.route and card.name == self.route[0]]
        if routed and routed[0].name != "lo":
            return routed[0]
        others = [c for c in self.cards if c.name != "lo" and c.is_up and c.addresses]
        return others[0] if len(others) == 1 else None

    @property
    def mtu(self) -> int | None:
        return self.outer_card.mtu if self.outer_card else None

    @property
    def master_address(self) -> str | None:
        return self.master_addresses[0] if self.master_addresses else None


_UNKNOWN: Any = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Everything about one node. A check runs only when its own section is known."""

    software: SoftwareFacts = _UNKNOWN
    gpus: GpuFacts = _UNKNOWN
    host: HostFacts = _UNKNOWN
    compiler: CompilerFacts = _UNKNOWN
    disk: DiskFacts = _UNKNOWN
    network: NetworkFacts = _UNKNOWN
    connectivity: dict[str, str] = _UNKNOWN  # name -> "" when it answered, else the error
    environment: dict[str, str] = _UNKNOWN
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def gpu_count(self) -> int:
        return len(self.gpus.cards) if self.gpus else 0


def facts_from_json(value: dict[str, Any]) -> NodeFacts:
    """The inverse of dataclasses.asdict, with checked types. Raises ValueError."""
    from pydantic import TypeAdapter

    known = {name: section for name, section in value.items() if section is not None}
    return TypeAdapter(NodeFacts).validate_python(known)


class NodeFailure(Exception):
    """Why a node gave no answer; `kind` is a key of `nodes._UNREACHED`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bus bandwidth: 2 (n - 1) / n x size / time, comparable between numbers of ranks n."""

    bytes_per_second: float
    ranks: int


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """`names` in the order of the hostfile.

    `shared`: for each node the names whose files it did not see, or an error. `connections`:
    (from, to) -> "" or the error. `all_reduce`: the measurement, or why there is none.
    """

    names: tuple[str, ...]
    slots: Mapping[str, int]
    master: str
    facts: Mapping[str, NodeFacts]
    unreachable: Mapping[str, NodeFailure] = field(default_factory=dict)
    shared: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    connections: Mapping[tuple[str, str], str] = field(default_factory=dict)
    all_reduce: Bandwidth | str = "not measured"

    def by_value(self, path: str) -> dict[str, list[str]]:
        """Each known value of `path`, such as "host.user" -> the nodes with that value."""
        section, name = path.split(".")
        found: dict[str, list[str]] = {}
        for node in self.names:
            known = getattr(self.facts.get(node), section, None)
            if known is not None and (value := getattr(known, name)) is not None:
                found.setdefault(str(value), []).append(node)
        return found
