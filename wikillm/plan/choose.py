"""Which recipe, micro-batch and accumulation: all that fit, ranked by estimated time; or a refusal that says what would.

For each recipe and kind of checkpointing, the largest micro-batch that fits (up to 64k tokens) is taken. What the
user set (recipe, micro-batch, checkpointing) is kept. Times within 2 % count as equal: then the simpler way wins.
Offload stands behind every way that fits without it, since the speed of hosts differs most from what is assumed, and
`zero3_plus` behind all: its 4-bit gradients change the arithmetic, which is the user's choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from wikillm.config.checks import ranks_that_can_share
from wikillm.config.compatibility import Case, Zero, conflicts
from wikillm.config.resolved import Resolved
from wikillm.config.schema import Checkpointing, TrainSection
from wikillm.core.errors import ConfigError
from wikillm.core.units import format_size
from wikillm.plan.communication import Communication, communication_per_step
from wikillm.plan.gpus import GPU_NAMES, Gpu, find_gpu
from wikillm.plan.job import MICRO, Job, describe_job, is_pinned
from wikillm.plan.memory import KEPT_FREE, host_bytes_per_rank, memory_per_rank
from wikillm.plan.memory_parts import Memory
from wikillm.plan.setup import Setup, setup_from_recipe
from wikillm.plan.time import StepTime, default_mfu, step_time

MOST_MICRO_TOKENS = 65_536
"""Tokens per rank and micro-step; more no longer makes the matrix products faster."""
SAME_TIME = 1.02
MOST_RANKS = 4096
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full_but_attention", "full")
"""The least recomputation first."""
PINS = ("deepspeed.config", MICRO, "train.gradient_checkpointing")


@dataclass(frozen=True, slots=True)
class Machine:
    """`nodes` x `gpus_per_node` GPUs of one kind. `host_memory`: bytes of a node that offload may fill."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    host_memory: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to train. `misfit` says what is lacking, None when it fits. Host bytes are per node."""

    setup: Setup
    memory: Memory
    host_bytes: int
    traffic: Communication
    time: StepTime
    misfit: str | None

    @property
    def fits(self) -> bool:
        return self.misfit is None


def rank_choices(
    resolved: Resolved,
    job: Job,
    machine: Machine,
    mfu: float | None = None,
    *,
    keep_pins: bool = True,
) -> list[Choice]:
    """All ways that fit, the best first, then those that do not, the nearest first."""
    pins = frozenset(key for key in PINS if keep_pins and is_pinned(resolved, key))
    found = [
        _best_micro(resolved, job, machine, setup, mfu, pins)
        for setup in _setups(resolved, job, machine, pins)
    ]
    fitting = [choice for choice in found if choice.fits]
    best = {
        last: min((c.time.total for c in fitting if _last_resort(c.setup) == last), default=0.0)
        for last in range(3)
    }
    fitting.sort(
        key=lambda choice: (
            _last_resort(choice.setup),
            max(choice.time.total, best[_last_resort(choice.setup)] * SAME_TIME),
            _effort(choice.setup),
        )
    )
    return fitting + sorted(
        (choice for choice in found if not choice.fits), key=lambda choice: choice.memory.total
    )


def choose(
    resolved: Resolved, job: Job, machine: Machine, mfu: float | None = None
) -> list[Choice]:
    """As `rank_choices`. Raises ConfigError when nothing fits, with what would."""
    choices = rank_choices(resolved, job, machine, mfu)
    if choices[0].fits:
        return choices
    least = choices[0]
    setup = least.setup
    fixes = list(_what_would_fit(resolved, job, machine, mfu))
    raise ConfigError(
        f"{resolved.config.model.preset} does not fit on {machine.nodes} x {machine.gpus_per_node} {machine.gpu.name}.",
        got=f"the least is {setup.recipe}, {setup.micro} sequence{'s' if setup.micro > 1 else ''} of "
        f"{job.shape.sequence_length} tokens"
        f"{f', {name} checkpointing' if (name := setup.checkpointing) != 'none' else ''}{', tiled MLP' if setup.tiled_mlp else ''}"
        f"{f', sequences over {job.sequence_parallel} GPUs' if job.sequence_parallel > 1 else ''}: "
        f"{least.misfit}\n{_largest_parts(least.memory)}",
        fix="\nor ".join(fixes) if fixes else "a smaller model, or GPUs with more memory",
    )


def _setups(
    resolved: Resolved, job: Job, machine: Machine, pins: frozenset[str]
) -> Iterator[Setup]:
    """Recipes worth a look, each with every kind of checkpointing, at micro-batch 1."""
    train, ranks = resolved.config.train, machine.ranks
    if "deepspeed.config" in pins and resolved.config.deepspeed.config is not None:
        recipes = [resolved.config.deepspeed.config]
    elif machine.gpu.device == "cpu":  # nothing to offload to
        recipes = ["zero0"] if ranks == 1 else ["zero1", "zero2", "zero0", "zero3"]
    elif ranks == 1:
        recipes = ["zero0", "zero2_offload", "zero3_offload"]
    else:
        recipes = ["zero1", "zero2", "zero0", "zero3", "zero2_offload", "zero3_offload"]
        recipes += ["zero3_plus"] if machine.nodes > 1 else []
    kinds = (
        (train.gradient_checkpointing,) if "train.gradient_checkpointing" in pins else CHECKPOINTING
    )
    for recipe in recipes:
        for checkpointing in kinds:
            setup = setup_from_recipe(
                recipe,
                hidden_size=job.shape.model.hidden_size,
                ranks=ranks,
                ranks_per_node=machine.gpus_per_node,
                micro=1,
                accumulation=job.sequences // (ranks // job.sequence_parallel),
                precision=job.precision,
                checkpointing=checkpointing,
                loss=job.loss,
                device=machine.gpu.device,
            )
            setup = replace(
                setup,
                muon=train.optimizer == "muon",
                ema=train.ema_decay > 0,
                tiled_mlp=job.tiled_mlp,
                masked=job.masked,
                sequence_parallel=job.sequence_parallel,
            )
            if "deepspeed.config" in pins or _goes_with_recipe(setup, train):
                yield setup


def _goes_with_recipe(setup: Setup, train: TrainSection) -> bool:
    zero = Zero(setup.stage, setup.offload_optimizer, setup.offload_param, setup.quantized)
    return not conflicts(Case(train, zero=zero, has_deepspeed=True))


def _best_micro(
    resolved: Resolved,
    job: Job,
    machine: Machine,
    setup: Setup,
    mfu: float | None,
    pins: frozenset[str],
) -> Choice:
    """The largest micro-batch that fits; the smallest one, with what it lacks, when none does."""
    groups = machine.ranks // job.sequence_parallel
    per_rank, at_first = job.sequences // groups, job.ramp.sequences_at(0) // groups
    if job.micro is not None and (
        MICRO in pins or resolved.config.train.global_batch_tokens is None
    ):
        sizes = [job.micro]
    else:
        most = max(1, MOST_MICRO_TOKENS * job.sequence_parallel // job.shape.sequence_length)
        sizes = [size for size in range(min(most, at_first), 0, -1) if at_first % size == 0]
    choice = None
    for size in sizes:
        choice = _evaluate(
            job, machine, replace(setup, micro=size, accumulation=per_rank // size), mfu
        )
        if choice.fits:
            break
    assert choice is not None, f"no micro-batch divides {per_rank} sequences"
    return choice


def _evaluate(job: Job, machine: Machine, setup: Setup, mfu: float | None) -> Choice:
    psi = job.shape.parameters
    memory, traffic = memory_per_rank(job.shape, setup), communication_per_step(job.shape, setup)
    host = host_bytes_per_rank(job.shape, setup) * setup.ranks_per_node
    time = step_time(
        job.shape,
        setup,
        traffic,
        machine.gpu,
        flops_per_token=job.flops_per_token,
        mfu=default_mfu(psi, job.loss, machine.gpu) if mfu is None else mfu,
    )
    misfit = None
    usable = int((1 - KEPT_FREE) * machine.gpu.memory)
    if memory.total > usable:
        misfit = (
            f"needs {format_size(memory.total)} per GPU, {format_size(usable)} are planned with"
        )
    elif host > machine.host_memory:
        misfit = f"needs {format_size(host)} of host memory per node, {format_size(machine.host_memory)} are assumed"
    return Choice(setup, memory, host, traffic, time, misfit)


def _last_resort(setup: Setup) -> int:
    """0, 1 with offload, 2 with quantized traffic: taken when nothing below fits, however fast it looks."""
    return 2 if setup.quantized else int(setup.offload_optimizer or setup.offload_param)


def _effort(setup: Setup) -> tuple[int, int, int]:
    """Of two equally fast ways the first is the one with less recomputation and the lower stage."""
    stage = (
        setup.stage if setup.ranks == 1 else {0: 4}.get(setup.stage, setup.stage)
    )  # zero1 before zero0
    return (CHECKPOINTING.index(setup.checkpointing), stage, -setup.micro)


def _largest_parts(memory: Memory) -> str:
    parts = sorted(memory.parts().items(), key=lambda part: -part[1])[:3]
    return "largest parts: " + ", ".join(f"{name} {format_size(size)}" for name, size in parts)


def _leaner(job: Job, machine: Machine) -> Iterator[Job]:
    """The same sequences with less memory per rank: MLPs in chunks; then also shared by more and more ranks of a node."""
    yield replace(job, tiled_mlp=True)
    for size in ranks_that_can_share(job.shape.model):
        divides = machine.gpus_per_node % size == 0 and job.shape.sequence_length % size == 0
        if size > job.sequence_parallel and size % job.sequence_parallel == 0 and divides:
            yield replace(job, tiled_mlp=True, sequence_parallel=size)


def _what_would_fit(
    resolved: Resolved, job: Job, machine: Machine, mfu: float | None
) -> Iterator[str]:
    """Other settings here; else more GPUs of the same kind, the next larger kind, more host memory. All are tried."""
    free = rank_choices(resolved, job, machine, mfu, keep_pins=False)[0]
    others = (
        rank_choices(resolved, other, machine, mfu, keep_pins=False)[0]
        for other in _leaner(job, machine)
    )
    if found := next((choice for choice in itertools.chain([free], others) if choice.fits), None):
        setup = found.setup
        yield " ".join(
            [
                f"--deepspeed {setup.recipe} train.per_device_train_batch_size={setup.micro}",
                f"train.gradient_checkpointing={setup.checkpointing}",
                *(["train.mlp_kernel=tiled"] if setup.tiled_mlp else []),
                *(
                    [f"train.sequence_parallel_size={size}"]
                    if (size := setup.sequence_parallel) > 1
                    else []
                ),
            ]
        )
        return

    def fits(other: Machine) -> bool:
        try:
            other_job = describe_job(
                resolved, ranks=other.ranks, gpu=other.gpu, train_tokens=job.train_tokens
            )
        except ConfigError:
            return False
        return rank_choices(resolved, other_job, other, mfu)[0].fits

    nodes, per_node = machine.nodes, machine.gpus_per_node
    while nodes * per_node < MOST_RANKS:
        nodes, per_node = (
            (nodes * 2, per_node)
            if per_node >= 8 or machine.nodes > 1
            else (1, min(8, per_node * 2))
        )
        host = machine.host_memory * per_node // machine.gpus_per_node
        if fits(Machine(machine.gpu, nodes, per_node, host)):
            yield f"{machine.gpu.flags} --nodes {nodes} --gpus-per-node {per_node}"
            break
    tried = (
        gpu for gpu in map(find_gpu, GPU_NAMES) if not gpu.note
    )  # not those that no run was written for
    for gpu in sorted(tried, key=lambda gpu: (gpu.memory, gpu.peak, gpu.name)):
        if gpu.memory > machine.gpu.memory and fits(replace(machine, gpu=gpu)):
            yield f"{gpu.flags} --nodes {machine.nodes} --gpus-per-node {machine.gpus_per_node}"
            break
    if free.memory.total <= (1 - KEPT_FREE) * machine.gpu.memory:
        yield f"--host-memory {-(-free.host_bytes // 2**30)}GiB, if a node has that much"
