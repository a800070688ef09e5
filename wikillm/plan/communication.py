"""What a GPU sends per optimizer step, by formula.

In elements, with A micro-steps (ZeRO paper, arXiv:1910.02054, section 7; ZeRO++, arXiv:2306.10209,
section 1): plain data parallel and ZeRO-1 send 2 Psi, ZeRO-2 (A + 1) Psi (DeepSpeed reduces
gradients at every micro-step), ZeRO-3 3 Psi A, and with hpZ, qwZ and qgZ 0.75 Psi A between nodes.
A ring over N ranks sends (N - 1) / N of that. Elements have the width of the weights. With 10^9
parameters in bf16, A = 4 and N = 8: ZeRO-1 sends 2 x 2 GB x 7/8 = 3.5 GB, ZeRO-2 8.75, ZeRO-3 21.

Over nodes of G ranks, NCCL makes as many rings as there are network cards. Each ring has its share
of the data and leaves a node once: every GPU sends all of its bytes to a neighbour, and 1 / G of
them cross its card (NCCL's "bus bandwidth" counts so). On 8 nodes of 8, 21 GB are 21 GB over NVLink
and 2.6 GB over each network card.

Where S ranks share sequences (`kernels.ulysses`), each layer sends q, k, v and attention's output
once forward and once backward, and once more where the forward pass is recomputed: 2 H + 2 K heads
per token of the rank, (S - 1) / S of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.plan.params import head_width
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Communication:
    """Bytes per GPU and optimizer step. `between_nodes`: over the GPU's share of the network.

    `host` crosses PCIe for offload. `sequences` are exchanged among the ranks that share sequences,
    and not counted in the others.
    """

    inside_node: int
    between_nodes: int
    host: int
    sequences: int = 0


def communication_per_step(workload: Workload, strategy: Strategy) -> Communication:
    """See the top of this file."""
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
        sequences=_of_sequences(workload, strategy),
    )


def _of_sequences(workload: Workload, strategy: Strategy) -> int:
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
    share = -(-parameters // strategy.ranks)
    width = strategy.bytes_per_weight
    moved = 0
    if strategy.offload_optimizer:  # gradients of every micro-step, then updated weights back
        moved += width * share * (strategy.accumulation + 1)
    if strategy.offload_param:  # each rank's share, for the forward and for the backward pass
        moved += 2 * width * share * strategy.accumulation
    return moved
