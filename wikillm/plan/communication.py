"""What a GPU sends per optimizer step, by formula.

In elements, with A micro-steps (ZeRO paper, arXiv 1910.02054, section 7; ZeRO++, arXiv 2306.10209, section 1):
plain data parallel and ZeRO-1 send 2 Psi, ZeRO-2 (A + 1) Psi (DeepSpeed reduces gradients at every micro-step),
ZeRO-3 3 Psi A, and with hpZ, qwZ and qgZ 0.75 Psi A between nodes. A ring over N ranks sends (N - 1) / N of that.
Elements go over the wire in the width of the weights.

Where S ranks share sequences (kernels.ulysses), each layer sends q, k, v and attention's output once forward and once
backward, and once more where the forward pass is done twice: 2 H + 2 K heads per token of the rank, (S - 1) / S of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wikillm.plan.params import head_width
from wikillm.plan.setup import Setup, Shape


@dataclass(frozen=True, slots=True)
class Communication:
    """Bytes per GPU and optimizer step. `host` crosses PCIe for offload: gradients down, weights up.

    `sequences` are exchanged among the ranks that share sequences, and not counted in the others.
    """

    inside_node: int
    between_nodes: int
    host: int
    sequences: int = 0


def communication_per_step(shape: Shape, setup: Setup) -> Communication:
    """A ring over several nodes passes every link: the slower one, between nodes, carries it all."""
    return replace(_of_states(shape.parameters, setup), sequences=_of_sequences(shape, setup))


def _of_sequences(shape: Shape, setup: Setup) -> int:
    ranks, model = setup.sequence_parallel, shape.model
    if ranks == 1:
        return 0
    heads = 2 * model.num_attention_heads + 2 * max(model.num_key_value_heads, ranks)
    passes = 2 if setup.checkpointing == "none" else 3
    elements = (
        setup.accumulation
        * setup.tokens(shape)
        * model.num_hidden_layers
        * heads
        * head_width(model)
    )
    return passes * setup.bytes_per_weight * elements * (ranks - 1) // ranks


def _of_states(parameters: int, setup: Setup) -> Communication:
    n, accumulation = setup.ranks, setup.accumulation
    elements = {0: 2.0, 1: 2.0, 2: accumulation + 1.0, 3: 3.0 * accumulation}[
        setup.stage
    ] * parameters
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
