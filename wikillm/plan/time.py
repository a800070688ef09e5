"""How long a step takes: the assumed MFU, and the traffic that computation cannot hide.

    step = compute + max(0, traffic - what computation hides) + host copies and CPU Adam (offload)

`compute` is FLOPs / (peak x MFU). Full checkpointing multiplies it by 4/3, since the forward pass
runs twice (Korthikanti et al., arXiv:2205.05198), less attention's share where attention is kept;
selective checkpointing repeats no product and is assumed to cost 5 %. The tiled MLP computes two of
its three products once more. 10^14 FLOPs at a peak of 10^15 per second and an MFU of 25 % take
0.4 s, with full checkpointing 0.53 s.

Gradients of stages 0-1 are sent during the last backward pass, those of stage 2 during every one
(2/3 of a micro-step); ZeRO-3 gathers during the whole step. No computation hides the weights that
stages 1 and 2 gather after the optimizer's step, DeepSpeed's all-reduce at stage 0, ZeRO-3's first
gather and last reduction of a micro-step (assumed to be of the largest module), and the exchange of
heads for positions where ranks share sequences. Nothing was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.plan.communication import Communication
from wikillm.plan.gpus import Gpu
from wikillm.plan.params import attention_flops
from wikillm.plan.strategy import Loss, Strategy
from wikillm.plan.workload import Workload

CPU_ADAM_BYTES_PER_SECOND = 20e9
"""Host memory traffic that a rank's CPU Adam is assumed to reach, at 28 bytes per parameter."""
SELECTIVE_COST = 1.05
"""Memory traffic of norms, rotations and SiLU. An assumption for GPUs; 1.03 to 1.07 on a CPU."""
CPU_MFU = 0.5
"""Share of the measured products that training in fp32 on a CPU is assumed to reach."""
_MFU: dict[str, tuple[tuple[float, float], ...]] = {
    "stock": ((300e6, 0.16), (1.2e9, 0.30), (float("inf"), 0.40)),
    "chunked": ((300e6, 0.25), (1.2e9, 0.35), (float("inf"), 0.40)),
}


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds per optimizer step, by part. `exposed`: waiting for traffic."""

    compute: float
    exposed: float
    host: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.host


def default_mfu(parameters: int, loss: Loss, gpu: Gpu) -> float:
    """What Hugging Face's layers are assumed to reach, where the user assumes nothing.

    With the stock loss 16 % near 120M parameters and a large vocabulary (a roofline estimate), more
    with the chunked one; 40 % above 1.2B. Published 39 to 46 % (MosaicML, OLMo-core) are for tuned
    code, so this is generous.
    """
    if gpu.device == "cpu":
        return CPU_MFU
    table = _MFU["stock" if loss == "stock" else "chunked"]
    return next(mfu for limit, mfu in table if parameters < limit)


def step_time(
    workload: Workload, strategy: Strategy, traffic: Communication, gpu: Gpu, *, mfu: float
) -> StepTime:
    """Seconds of one optimizer step over all its micro-steps."""
    model = workload.model
    tokens = strategy.accumulation * strategy.tokens(workload)
    # Without tensor cores fp32 reaches an eighth to a sixteenth.
    is_slow = strategy.precision == "fp32" and gpu.device == "cuda"
    reached = gpu.peak / (8 if is_slow else 1) * mfu
    if gpu.ceiling is not None:
        reached = min(reached, gpu.ceiling)
    work = workload.flops_per_token * _cost_of_checkpointing(workload, strategy)
    if strategy.tiled_mlp:  # gate and up again, 2 FLOPs per weight; not counted in MFU
        work += 4 * model.num_hidden_layers * model.hidden_size * model.intermediate_size
    compute = tokens * work / reached
    # Traffic: the part beside which nothing runs, and of the rest what computation does not hide.
    sent = traffic.inside_node / gpu.inside_node + traffic.between_nodes / gpu.between_nodes
    last_only = 2 / 3 / strategy.accumulation
    hidden = {0: last_only, 1: last_only, 2: 2 / 3, 3: 1.0}[strategy.stage] * compute
    alone = _share_alone(workload, strategy) * sent
    host = traffic.host / gpu.host_link
    if strategy.offload_optimizer:
        host += 28 * (workload.parameters / strategy.ranks) / CPU_ADAM_BYTES_PER_SECOND
    is_inside = strategy.sequence_parallel <= strategy.ranks_per_node
    exchange = traffic.sequences / (gpu.inside_node if is_inside else gpu.between_nodes)
    return StepTime(compute, alone + max(0.0, sent - alone - hidden) + exchange, host)


def _share_alone(workload: Workload, strategy: Strategy) -> float:
    """Share of the traffic that no computation runs beside (see `communication` for the counts)."""
    if strategy.stage == 0:
        return 0.0 if strategy.recipe == "ddp" else 1.0
    first_and_last = 2 / 3 * workload.largest_module / workload.parameters
    return {1: 1 / 2, 2: 1 / (strategy.accumulation + 1), 3: first_and_last}[strategy.stage]


def _cost_of_checkpointing(workload: Workload, strategy: Strategy) -> float:
    """The factor by which computation grows."""
    if strategy.checkpointing == "none":
        return 1.0
    if strategy.checkpointing == "selective":
        return SELECTIVE_COST
    if strategy.checkpointing == "full":
        return 4 / 3
    attention = attention_flops(workload.model, workload.sequence_length)
    return 4 / 3 - attention / workload.flops_per_token / 3
