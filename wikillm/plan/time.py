"""How long a step takes, by assumption: the assumed MFU, and the traffic that computation cannot hide.

    step = compute + max(0, traffic - what computation hides) + host copies and CPU Adam (offload)

`compute` is FLOPs / (peak x MFU), times 4/3 under full checkpointing, which runs the forward pass twice (Korthikanti et
al., arXiv 2205.05198), less attention's share of it where attention is kept; selective checkpointing does no product twice
and is assumed to cost 5 %. The tiled MLP computes two of its three products once more. Gradients of stages 0-1 travel
beside the last backward pass, those of stage 2 beside every one (2/3 of a micro-step); ZeRO-3 gathers beside everything. Nothing
runs beside the weights that stages 1 and 2 gather after the optimizer's step, nor beside DeepSpeed's all-reduce at stage 0,
nor beside ZeRO-3's first gather and last reduction of a micro-step, taken to be of the largest module (the embedding).
The exchange of heads for positions, where ranks share sequences, is waited for. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.plan.communication import Communication
from wikillm.plan.gpus import Gpu
from wikillm.plan.params import head_width
from wikillm.plan.setup import Loss, Setup, Shape

CPU_ADAM_BYTES_PER_SECOND = 20e9
"""Host memory traffic that one rank's CPU Adam is assumed to reach; it touches 28 bytes per parameter."""
SELECTIVE_COST = 1.05
"""Norms, rotations and SiLU once more: memory traffic, no products. An assumption for GPUs; 1.03 to 1.07 were measured on a CPU."""
CPU_MFU = 0.5
"""Share of the measured products that training in fp32 on a CPU is assumed to reach (`--mfu` sets it)."""
_MFU: dict[str, tuple[tuple[float, float], ...]] = {
    "stock": ((300e6, 0.16), (1.2e9, 0.30), (float("inf"), 0.40)),
    "chunked": ((300e6, 0.25), (1.2e9, 0.35), (float("inf"), 0.40)),
}


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds per optimizer step, by part."""

    compute: float
    exposed: float
    host: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.host


def assumed_mfu(parameters: int, loss: Loss = "chunked") -> float:
    """What Hugging Face's layers are assumed to reach, by size. With its own loss 16 % near 120M and a large vocabulary (a
    roofline estimate), more with the chunked one; 40 % above 1.2B. Published 39 to 46 % (MosaicML, OLMo-core) are for tuned
    code, so this is generous."""
    return next(
        mfu for limit, mfu in _MFU["stock" if loss == "stock" else "chunked"] if parameters < limit
    )


def default_mfu(parameters: int, loss: Loss, gpu: Gpu) -> float:
    """The assumption where the user makes none."""
    return CPU_MFU if gpu.device == "cpu" else assumed_mfu(parameters, loss)


def step_time(
    shape: Shape,
    setup: Setup,
    traffic: Communication,
    gpu: Gpu,
    *,
    flops_per_token: float,
    mfu: float,
) -> StepTime:
    """Seconds of one optimizer step over all its micro-steps."""
    tokens = setup.accumulation * setup.tokens(shape)
    cost = _cost_of_checkpointing(shape, setup, flops_per_token)
    no_tensor_cores = setup.precision == "fp32" and gpu.device == "cuda"  # an eighth to a sixteenth
    reached = gpu.peak / (8 if no_tensor_cores else 1) * mfu
    if gpu.ceiling is not None:
        reached = min(reached, gpu.ceiling)
    # Gate and up again, 2 FLOPs per weight; as in MFU, what is done twice is no work of the model's.
    again = (
        4 * shape.model.num_hidden_layers * shape.model.hidden_size * shape.model.intermediate_size
    )
    compute = tokens * (flops_per_token * cost + (again if setup.tiled_mlp else 0)) / reached
    sent = traffic.inside_node / gpu.inside_node + traffic.between_nodes / gpu.between_nodes
    hidden = {0: 2 / 3 / setup.accumulation, 1: 2 / 3 / setup.accumulation, 2: 2 / 3, 3: 1.0}[
        setup.stage
    ] * compute
    alone = _share_alone(shape, setup) * sent
    host = traffic.host / gpu.host_link
    if setup.offload_optimizer:
        host += 28 * (shape.parameters / setup.ranks) / CPU_ADAM_BYTES_PER_SECOND
    shared_link = (
        gpu.inside_node if setup.sequence_parallel <= setup.ranks_per_node else gpu.between_nodes
    )
    exchange = traffic.sequences / shared_link
    return StepTime(compute, alone + max(0.0, sent - alone - hidden) + exchange, host)


def _share_alone(shape: Shape, setup: Setup) -> float:
    """Share of the states' traffic that no computation runs beside (see `communication` for the counts)."""
    if setup.stage == 0:
        return 0.0 if setup.recipe == "ddp" else 1.0
    first_and_last = 2 / 3 * shape.largest_module / shape.parameters
    return {1: 1 / 2, 2: 1 / (setup.accumulation + 1), 3: first_and_last}[setup.stage]


def _cost_of_checkpointing(shape: Shape, setup: Setup, flops_per_token: float) -> float:
    """By how much computation grows, as a factor."""
    if setup.checkpointing in ("none", "selective"):
        return SELECTIVE_COST if setup.checkpointing == "selective" else 1.0
    if setup.checkpointing == "full":
        return 4 / 3
    model = shape.model
    attention = (
        12
        * model.num_hidden_layers
        * model.num_attention_heads
        * head_width(model)
        * shape.sequence_length
    )
    return 4 / 3 - attention / flops_per_token / 3
