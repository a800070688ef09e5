"""What is known about one node: plain values, gathered on it, sent as JSON, judged elsewhere.

Sizes are bytes, times seconds. A section that could not be gathered is None, and `errors` says why. Values of
environment variables that name a secret are not part of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class Software:
    """`packages` has the installed version or None, `ranges` what WikiLLM supports. `torch_cuda`: of the wheel, "" on CPU."""

    python: str
    executable: str
    packages: dict[str, str | None]
    ranges: dict[str, str]
    torch_cuda: str | None
    encoding: str
    code_folder: str
    code_digest: str


@dataclass(frozen=True, slots=True)
class GpuCard:
    """One GPU as nvidia-smi tells it; None where it says N/A. Memory in MiB, power in W."""

    index: int
    name: str
    memory_total: int | None = None
    memory_used: int | None = None
    compute_capability: float | None = None
    persistence: bool | None = None
    power_limit: float | None = None
    power_default: float | None = None
    ecc_now: int | None = None  # uncorrected errors since the driver was loaded
    ecc_ever: int | None = None
    row_remap: str | None = None  # "pending" or "failed", "" when neither
    mig: bool | None = None
    compute_mode: str | None = None
    temperature: int | None = None
    throttle: int | None = None  # bits of clocks_event_reasons.active
    pcie_width: int | None = None
    pcie_width_max: int | None = None


@dataclass(frozen=True, slots=True)
class Gpus:
    """`hardware`: NVIDIA GPUs on the PCI bus. `smi`: "" when nvidia-smi answered, else what it said or that it is missing.

    `links`: (a, b, kind) for every pair, kind as in `nvidia-smi topo -m`.
    """

    hardware: int
    smi: str
    driver: str = ""
    driver_cuda: str = ""
    cards: tuple[GpuCard, ...] = ()
    processes: tuple[tuple[int, str, int], ...] = ()  # pid, name, MiB
    links: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """Limits are soft limits, UNLIMITED for none. `identity` is equal only for two names of one machine."""

    hostname: str
    identity: str
    user: str
    cores: int
    cpu_quota: float | None
    memory: int
    memory_available: int
    swap: int
    swap_used: int
    cgroup_limit: int | None
    cgroup_used: int | None
    load: float
    open_files: int
    locked_memory: int
    processes: int
    shm_total: int | None
    shm_free: int | None
    shm_leftovers: tuple[tuple[str, int], ...]
    governor: str | None
    clock_synchronised: bool | None


@dataclass(frozen=True, slots=True)
class OpLock:
    """torch's lock file of a compilation. `is_held`: some process here has it open. `age` since the last change around it."""

    path: str
    age: float
    is_held: bool


@dataclass(frozen=True, slots=True)
class Compiler:
    """What compiles DeepSpeed's ops, and where the results lie."""

    cxx: str
    cxx_version: str
    has_headers: bool
    ninja: str
    nvcc: str
    nvcc_cuda: str
    folder: str
    is_writable: bool
    is_executable: bool
    locks: tuple[OpLock, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, or its nearest existing parent, and the file system below it. `bytes_per_second`: written with fsync."""

    path: str
    existing: str
    is_writable: bool
    free: int
    inodes_free: int | None
    kind: str
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """`data` has a digest per source file: size, and the first and last MiB. `data_bytes` is decompressed text.

    `checkpoints_stay` and `checkpoints_go` are bytes in the run directory; the latter are free before the first save.
    """

    run: Place
    store: Place
    store_stands: bool
    temporary: Place
    data: dict[str, str]
    data_bytes: int
    data_error: str
    checkpoints_stay: int = 0
    checkpoints_go: int = 0


@dataclass(frozen=True, slots=True)
class Nic:
    """`speed` in Mbit/s, None where the driver does not say (virtual cards). `dropped`: share of received packets lost."""

    name: str
    is_up: bool
    mtu: int
    speed: int | None
    addresses: tuple[str, ...]
    bad_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """`master` is the name that ranks meet at, and what it resolves to here. `route` (card, address) leads there."""

    hostname: str
    hostname_addresses: tuple[str, ...]
    nics: tuple[Nic, ...]
    master: str
    master_addresses: tuple[str, ...]
    route: tuple[str, str] | None
    master_port: int
    port_error: str  # "" when nobody listens there
    infiniband: tuple[tuple[str, str], ...]  # (device:port, state)
    firewalls: tuple[str, ...]

    @property
    def outer_card(self) -> Nic | None:
        """The card that leads to the other nodes: that of the route; where the name is wrong and it is `lo`, the only other."""
        routed = next((nic for nic in self.nics if self.route and nic.name == self.route[0]), None)
        if routed is not None and routed.name != "lo":
            return routed
        others = [nic for nic in self.nics if nic.name != "lo" and nic.is_up and nic.addresses]
        return others[0] if len(others) == 1 else None


_UNKNOWN: Any = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Everything about one node. A section that is not known is None; a check is asked only when its own section is."""

    software: Software = _UNKNOWN
    gpus: Gpus = _UNKNOWN
    host: Host = _UNKNOWN
    compiler: Compiler = _UNKNOWN
    disk: Disk = _UNKNOWN
    network: Network = _UNKNOWN
    hubs: dict[str, str] = _UNKNOWN  # name -> "" when it answered, else the error
    environment: dict[str, str] = _UNKNOWN
    errors: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def facts_from_json(value: dict[str, Any]) -> NodeFacts:
    """The inverse of `to_json`; checked, since it comes from another machine. Raises ValueError."""
    from pydantic import TypeAdapter

    known = {name: section for name, section in value.items() if section is not None}
    return TypeAdapter(NodeFacts).validate_python(known)
