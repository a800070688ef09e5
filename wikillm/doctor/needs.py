"""What a run needs on each node. It is sent to every node as JSON; `run_needs` computes it.

Sizes are estimates in bytes. Only `least_checkpoint` is a lower bound, so a run is refused only if
this size does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needs:
    """The needs of a run on each node. Paths are those on the node.

    Attributes:
        slots: processes per node.
        master: name of the host of rank 0.
        data_path: the sources that are paths. `has_source` is False if the run has only addresses
            or finished stores.
        keep: the fields of checkpoints.retention.Keep.
        compiles: train.compile is set.
        gpu_ops: ops that DeepSpeed compiles if the ranks use GPUs.
        uses_triton: Triton runs if the ranks use GPUs.
        recipe: the DeepSpeed recipe, "" without one.
        host_memory: bytes that offload keeps in memory, on each node.
        not_forwarded: variables set here that a run reads and that other nodes do not get.
        chooses_card: the supervisor sets GLOO_SOCKET_IFNAME.
    """

    nodes: int
    slots: int
    master: str
    master_port: int
    run_dir: str
    store_dir: str
    data_path: tuple[str, ...]
    has_source: bool
    data_format: str
    text_key: str
    keep: tuple[int, int | None, int]
    precision: str
    compiles: bool
    gpu_ops: tuple[str, ...]
    uses_triton: bool
    recipe: str
    checkpoint: int
    least_checkpoint: int
    checkpoints_kept: int
    host_memory: int
    batch_error: str
    not_forwarded: tuple[str, ...]
    chooses_card: bool

    @property
    def ranks(self) -> int:
        return self.nodes * self.slots

    @property
    def offload(self) -> bool:
        return self.host_memory > 0
