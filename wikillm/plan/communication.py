"""What a GPU sends per optimizer step, by formula.

In elements, with A micro-steps (ZeRO paper, arXiv 1910.02054, section 7; ZeRO++, arXiv 2306.10209, section 1):
plain data parallel and ZeRO-1 send 2 Psi, ZeRO-2 (A + 1) Psi (DeepSpeed reduces gradients at every micro-step),
ZeRO-3 3 Psi A, and with hpZ, qwZ and qgZ 0.75 Psi A between nodes. A ring over N ranks sends (N - 1) / N of that.
Elements go over the wire in the width of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.plan.setup import Setup


@dataclass(frozen=True, slots=True)
class Communication:
    """Bytes per GPU and optimizer step. `host` crosses PCIe for offload: gradients down, weights up."""

    inside_node: int
    between_nodes: int
    host: int


def communication_per_step(parameters: int, setup: Setup) -> Communication:
    """A ring over several nodes passes every link: the slower one, between nodes, carries it all."""
    n, accumulation = setup.ranks, setup.accumulation
    elements = {0: 2.0, 1: 2.0, 2: accumulation + 1.0, 3: 3.0 * accumulation}[setup.stage] * parameters
    sent = setup.bytes_per_weight * elements * (n - 1) / n
    host = _host_bytes(parameters, setup)
    if setup.nodes == 1:
        return Communication(int(sent), 0, host)
    if setup.quantized:
        between = setup.bytes_per_weight * 0.75 * accumulation * parameters * (n - 1) / n
        return Communication(int(sent), int(between), host)
    return Communication(0, int(sent), host)


def _host_bytes(parameters: int, setup: Setup) -> int:
    share = -(-parameters // setup.ranks)
    moved = 0
    if setup.offload_optimizer:  # gradients of every micro-step to the host, updated weights back
        moved += setup.bytes_per_weight * share * (setup.accumulation + 1)
    if setup.offload_param:  # each rank's share, for the forward and for the backward pass
        moved += 2 * setup.bytes_per_weight * share * setup.accumulation
    return moved
