"""Estimates the time of a step from the assumed MFU and the traffic that computation cannot hide.

    step = compute + max(0, traffic - what computation hides) + host copies and CPU Adam (offload)

`compute` is FLOPs / (peak x MFU). Full checkpointing multiplies it by 4/3, since the forward pass
runs twice (Korthikanti et al., arXiv:2205.05198), less attention's share if attention is kept.
Selective checkpointing repeats no product and is assumed to cost 5 %. The tiled MLP computes two of
its three products once more. 10^14 FLOPs at a peak of 10^15 per second and an MFU of 25 % take
0.4 s, with full checkpointing 0.53 s.

Stages 0 and 1 send gradients during the last backward pass, stage 2 during every backward pass (2/3
of a micro-step); ZeRO-3 gathers during the whole step. Computation does not hide: the weights that
stages 1 and 2 gather after the optimizer's step; DeepSpeed's all-reduce at stage 0; ZeRO-3's first
gather and last reduction of a micro-step (assumed to be of the largest module); and the exchange of
heads for positions between ranks that share sequences. The slower of the links (inside a node,
between nodes) limits a ring over nodes; the two hops of hpZ, qwZ and qgZ follow each other. Each
collective also costs a ring's latency, which makes ZeRO-3 slow for small models on many ranks.
Nothing was measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wikillm.plan.communication import Communication
from wikillm.plan.gpus import Gpu
from wikillm.plan.params import attention_flops
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload

CPU_ADAM_BYTES_PER_SECOND = 20e9
"""Assumed host memory traffic of a rank's CPU Adam, which moves 28 bytes per parameter."""
NVLINK_STEP = 3.4e-6
PCIE_STEP = 5.7e-6
NETWORK_STEP = 14.0e-6
TREE_STEP = 4.0e-6
TREE_NETWORK_STEP = 14.0e-6
"""Seconds per step of a ring or a tree: hwLatencies of protocol Simple in NVIDIA/nccl,
src/graph/tuning.cc, in versions with Blackwell; older versions have 28 us for trees over a network.
"""
MAX_PCIE_RATE = 50e9
"""Bytes/s inside a node up to which a link counts as PCIe, and above as NVLink."""
SELECTIVE_COST = 1.05
"""Factor for recomputing norms, rotations and SiLU. Assumed for GPUs; 1.03 to 1.07 on a CPU."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds per optimizer step, by part. `exposed`: time spent waiting for traffic."""

    compute: float
    exposed: float
    host: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.host


def step_time(
    workload: Workload, strategy: Strategy, traffic: Communication, gpu: Gpu, *, mfu: float
) -> StepTime:
    """Seconds of one optimizer step over all its micro-steps."""
    model = workload.model
    tokens = strategy.accumulation * strategy.tokens(workload)
    # In fp32 a GPU does not use its tensor cores, and reaches an eighth to a sixteenth.
    is_slow = strategy.precision == "fp32" and gpu.device == "cuda"
    reached = gpu.peak / (8 if is_slow else 1) * mfu
    if gpu.ceiling is not None:
        reached = min(reached, gpu.ceiling)
    work = workload.flops_per_token * _cost_of_checkpointing(workload, strategy)
    if strategy.tiled_mlp:  # gate and up again, 2 FLOPs per weight; not counted in MFU
        work += 4 * model.num_hidden_layers * model.hidden_size * model.intermediate_size
    compute = tokens * work / reached
    # Training waits for all traffic `alone`, without computation beside it. Of the traffic `beside`
    # computation, it waits for what takes longer than the computation.
    links = (traffic.inside_node / gpu.inside_node, traffic.between_nodes / gpu.between_nodes)
    sent = sum(links) if strategy.quantized else max(links)
    last_only = 2 / 3 / strategy.accumulation
    hidden = {0: last_only, 1: last_only, 2: 2 / 3, 3: 1.0}[strategy.stage] * compute
    latency_alone, latency_beside = _latencies(workload, strategy, gpu)
    fraction = _fraction_without_computation(workload, strategy)
    alone = fraction * sent + latency_alone
    beside = (1 - fraction) * sent + latency_beside
    host = traffic.host / gpu.host_link
    if strategy.offload_optimizer:
        host += 28 * (workload.parameters / strategy.ranks) / CPU_ADAM_BYTES_PER_SECOND
    is_inside = strategy.sequence_parallel <= strategy.ranks_per_node
    exchange = traffic.sequences / (gpu.inside_node if is_inside else gpu.between_nodes)
    return StepTime(compute, alone + max(0.0, beside - hidden) + exchange, host)


def _fraction_without_computation(workload: Workload, strategy: Strategy) -> float:
    """Fraction of the traffic that no computation runs beside (`communication` counts it)."""
    if strategy.stage == 0:
        return 0.0 if strategy.recipe == "ddp" else 1.0
    first_and_last = 2 / 3 * workload.largest_module / workload.parameters
    return {1: 1 / 2, 2: 1 / (strategy.accumulation + 1), 3: first_and_last}[strategy.stage]


def _latencies(workload: Workload, strategy: Strategy, gpu: Gpu) -> tuple[float, float]:
    """Latency in seconds of a step's collectives: (without computation beside them, with it).

    ZeRO-3 has three rings per layer and micro-step (hpZ has one over all ranks), and training waits
    for the first and the last. Stages 1 and 2 have a tree per bucket of gradients and, after the
    optimizer, a ring per group of parameters: DeepSpeed 0.19 gathers a whole group for any
    `allgather_bucket_size` (all_gather_dp_groups in deepspeed/runtime/utils.py).
    """
    if gpu.device == "cpu" or strategy.ranks == 1:
        return 0.0, 0.0
    step = NVLINK_STEP if gpu.inside_node > MAX_PCIE_RATE else PCIE_STEP
    ring = (strategy.ranks - strategy.nodes) * step + (strategy.nodes - 1) * NETWORK_STEP
    hops = math.ceil(math.log2(strategy.nodes))
    tree = 2 * ((strategy.ranks_per_node - 1) * TREE_STEP + hops * TREE_NETWORK_STEP)
    if strategy.stage == 3:
        count = (workload.model.num_hidden_layers + 1) * (1 if strategy.quantized else 3)
        first_and_last = 1 if strategy.quantized else 2
        micro_steps = strategy.accumulation
        return micro_steps * first_and_last * ring, micro_steps * (count - first_and_last) * ring
    trees = math.ceil(workload.parameters / max(1, strategy.reduce_bucket)) * tree
    if strategy.stage == 0:
        return 0.0, trees
    groups = 3 if strategy.muon else 2  # decayed, not decayed, and Muon's matrices
    return groups * ring, trees * (strategy.accumulation if strategy.stage == 2 else 1)


def _cost_of_checkpointing(workload: Workload, strategy: Strategy) -> float:
    """The factor by which checkpointing increases computation."""
    if strategy.checkpointing == "none":
        return 1.0
    if strategy.checkpointing == "selective":
        return SELECTIVE_COST
    if strategy.checkpointing == "full":
        return 4 / 3
    attention = attention_flops(workload.model, workload.sequence_length)
    return 4 / 3 - attention / workload.flops_per_token / 3
