"""The bytes that a GPU sends per optimizer step, by formula.

With A micro-steps and Psi parameters (ZeRO paper, arXiv:1910.02054, section 7; ZeRO++,
arXiv:2306.10209, section 1), in elements: plain data parallel and ZeRO-1 send 2 Psi, ZeRO-2
(A + 1) Psi (DeepSpeed reduces gradients at every micro-step), ZeRO-3 3 Psi A, and with hpZ, qwZ and
qgZ 0.75 Psi A between nodes. A ring over N ranks sends (N - 1) / N of that. Elements have the width
of the weights. With 10^9 parameters in bf16, A = 4 and N = 8, ZeRO-1 sends 2 x 2 GB x 7/8 = 3.5 GB,
ZeRO-2 8.75 GB, ZeRO-3 21 GB.

Over nodes of G ranks, NCCL makes as many rings as there are network cards. Each ring carries an
equal part of the data and leaves a node once: every GPU sends all of its bytes to a neighbour, and
1 / G of them cross its network card (as in NCCL's "bus bandwidth"). On 8 nodes of 8 ranks, 21 GB
mean 21 GB over NVLink and 2.6 GB over each network card.

If S ranks share sequences (`kernels.ulysses`), each layer sends q, k, v and attention's output once
in the forward pass, once in the backward pass, and once more if the forward is recomputed. That is
2 H + 2 K heads per token of the rank, of which (S - 1) / S leave the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.plan.params import head_width
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Communication:
    """Bytes per GPU and optimizer step.

    Attributes:
        inside_node: over NVLink or PCIe.
        between_nodes: over the network.
        host: over PCIe, for offload.
        sequences: exchanged among ranks that share sequences; not part of the other counts.
    """

    inside_node: int
    between_nodes: int
    host: int
    sequences: int = 0


def communication_per_step(workload: Workload, strategy: Strategy) -> Communication:
    """The traffic of one optimizer step, by the formulas at the top of this file."""
    n = strategy.ranks
    accumulation = strategy.accumulation
    parameters = workload.parameters
    factors = {0: 2.0, 1: 2.0, 2: accumulation + 1.0, 3: 3.0 * accumulation}
    elements = factors[strategy.stage] * parameters
    inside = strategy.bytes_per_weight * elements * (n - 1) / n
    between = 0.0
    if strategy.nodes > 1:
        between = inside / strategy.ranks_per_node
        if strategy.quantized:  # inside a node three times the weights, between nodes 0.75 times
            between /= 4
        if strategy.ranks_per_node == 1:
            inside = 0.0
    return Communication(
        int(inside),
        int(between),
        host=_host_bytes(parameters, strategy),
        sequences=_sequence_bytes(workload, strategy),
    )


def _sequence_bytes(workload: Workload, strategy: Strategy) -> int:
    ranks = strategy.sequence_parallel
    model = workload.model
    if ranks == 1:
        return 0
    heads = 2 * model.num_attention_heads + 2 * max(model.num_key_value_heads, ranks)
    passes = 2 if strategy.checkpointing == "none" else 3
    tokens = strategy.accumulation * strategy.tokens(workload)
    elements = tokens * model.num_hidden_layers * heads * head_width(model)
    return passes * strategy.bytes_per_weight * elements * (ranks - 1) // ranks


def _host_bytes(parameters: int, strategy: Strategy) -> int:
    partition = -(-parameters // strategy.ranks)
    width = strategy.bytes_per_weight
    moved = 0
    if strategy.offload_optimizer:  # gradients of every micro-step, then updated weights back
        moved += width * partition * (strategy.accumulation + 1)
    if strategy.offload_param:  # each rank's partition, once per forward and once per backward pass
        moved += 2 * width * partition * strategy.accumulation
    return moved
