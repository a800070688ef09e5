"""Which recipe, micro-batch and accumulation: every candidate that fits, ranked by estimated time.

For each recipe and kind of checkpointing, the largest micro-batch that fits (up to 64k tokens) is
taken. What the user set (recipe, micro-batch, checkpointing) is kept. Times within 2 % count as
equal: then the simpler candidate wins. Offload ranks below every candidate that fits without it,
since host speeds are the least certain assumption. `zero3_plus` ranks last: its 4-bit gradients
change the arithmetic, which is the user's decision. Where nothing fits, the error says what does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from wikillm.config.checks import ranks_that_can_share
from wikillm.config.compatibility import Case, Zero, conflicts
from wikillm.config.origin import Origin
from wikillm.config.resolved import Resolved
from wikillm.config.schema import Checkpointing, ModelSection, TrainSection
from wikillm.core.errors import ConfigError
from wikillm.core.units import format_size
from wikillm.plan.communication import Communication, communication_per_step
from wikillm.plan.gpus import GPU_NAMES, Gpu, find_gpu, planned_precision
from wikillm.plan.memory import KEPT_FREE, Memory, host_bytes_per_rank, memory_per_rank
from wikillm.plan.roofline import default_mfu
from wikillm.plan.strategy import Strategy, strategy_of, with_recipe
from wikillm.plan.time import StepTime, step_time
from wikillm.plan.workload import Workload, describe_workload

MOST_MICRO_TOKENS = 65_536
"""Tokens per rank and micro-step; more no longer makes the matrix products faster."""
SAME_TIME = 1.02
MOST_RANKS = 4096
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full_but_attention", "full")
"""The least recomputation first."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a plan keeps, as the user set it; None is free."""

    recipe: str | None = None
    micro: int | None = None
    checkpointing: Checkpointing | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """`nodes` x `gpus_per_node` of one kind. `host_memory`: bytes of a node, for offload."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    host_memory: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> int:
        """Bytes of a GPU that are planned with."""
        return int((1 - KEPT_FREE) * self.gpu.memory)

    @property
    def flags(self) -> str:
        return f"{self.gpu.flags} --nodes {self.nodes} --gpus-per-node {self.gpus_per_node}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy on a machine. `misfit`: what it lacks, None when it fits. Host bytes per node."""

    strategy: Strategy
    memory: Memory
    host_bytes: int
    traffic: Communication
    time: StepTime
    misfit: str | None

    @property
    def fits(self) -> bool:
        return self.misfit is None


def choose(
    resolved: Resolved, workload: Workload, machine: Machine, mfu: float | None = None
) -> list[Candidate]:
    """As `rank_candidates`, with what the user set. Raises ConfigError when nothing fits."""
    train = resolved.config.train
    origins = resolved.origins
    # A batch that follows from the micro-batch leaves no choice of it.
    free = Pinned(micro=workload.micro if train.global_batch_tokens is None else None)
    pinned = Pinned(micro=workload.micro)
    if origins["deepspeed.config"].is_user:
        pinned = replace(pinned, recipe=resolved.config.deepspeed.config)
    if origins["train.gradient_checkpointing"].is_user:
        pinned = replace(pinned, checkpointing=train.gradient_checkpointing)
    switches = _switches(workload, train, origins, machine)
    candidates = rank_candidates(train, workload, machine, switches, pinned, mfu)
    if candidates[0].fits:
        return candidates

    # Other settings here, then other machines, are tried.
    others = [(train, way) for way in (switches, *_leaner(workload, machine, switches))]
    tokens = workload.train_tokens
    if switches.muon:  # which works without offload only
        adamw = train.model_copy(update={"optimizer": "adamw", "max_grad_norm": 1.0})
        others.append((adamw, replace(switches, muon=False)))
    here = [rank_candidates(own, workload, machine, way, free, mfu)[0] for own, way in others]

    def fits(other: Machine) -> bool:
        try:
            again = describe_workload(resolved, ranks=other.ranks, train_tokens=tokens)
            switches = _switches(again, train, origins, other)
        except ConfigError:
            return False
        return rank_candidates(train, again, other, switches, pinned, mfu)[0].fits

    fixes = list(_proposals(machine, here, fits))
    least = candidates[0]
    parts = sorted(least.memory.parts().items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {format_size(size)}" for name, size in parts)
    raise ConfigError(
        f"{workload.model.label} does not fit on "
        f"{machine.nodes} x {machine.gpus_per_node} {machine.gpu.name}.",
        got=f"the least, {' '.join(settings_of(least.strategy))}: {least.misfit}\n"
        f"largest parts: {largest}",
        fix="\nor ".join(fixes) if fixes else "a smaller model, or GPUs with more memory",
    )


def rank_candidates(
    train: TrainSection,
    workload: Workload,
    machine: Machine,
    switches: Strategy,
    pinned: Pinned,
    mfu: float | None = None,
) -> list[Candidate]:
    """The candidates that fit, the best first, then those that do not, the smallest first.

    `train` excludes the recipes that a run with it refuses; `switches` are without a recipe.
    """
    found = [
        _best_micro(workload, machine, strategy, pinned.micro, mfu)
        for strategy in _strategies(train, workload.model, machine, switches, pinned)
    ]
    fitting = [candidate for candidate in found if candidate.fits]
    # Among those of one tier, times within SAME_TIME of the best count as the same.
    best: dict[int, float] = {}
    for candidate in fitting:
        tier = _tier(candidate.strategy)
        best[tier] = min(candidate.time.total, best.get(tier, candidate.time.total))

    def rank(candidate: Candidate) -> tuple[float, ...]:
        strategy = candidate.strategy
        tier = _tier(strategy)
        time = max(candidate.time.total, best[tier] * SAME_TIME)
        # Of two equally fast ones the one with less recomputation and the lower stage; zero0 last.
        stage = 4 if strategy.stage == 0 and strategy.ranks > 1 else strategy.stage
        recomputes = CHECKPOINTING.index(strategy.checkpointing)
        return tier, time, recomputes, stage, -strategy.micro

    misfits = (candidate for candidate in found if not candidate.fits)
    return sorted(fitting, key=rank) + sorted(misfits, key=lambda misfit: misfit.memory.total)


def _switches(
    workload: Workload, train: TrainSection, origins: Mapping[str, Origin], machine: Machine
) -> Strategy:
    """The run's switches on a machine, without a recipe."""
    return strategy_of(
        workload.model,
        train,
        None,
        ranks=machine.ranks,
        ranks_per_node=machine.gpus_per_node,
        precision=planned_precision(train, origins, machine.gpu),
        device=machine.gpu.device,
    )


def _strategies(
    train: TrainSection,
    model: ModelSection,
    machine: Machine,
    switches: Strategy,
    pinned: Pinned,
) -> Iterator[Strategy]:
    """Recipes to compare, each with every kind of checkpointing, at micro-batch 1."""
    if pinned.recipe is not None:
        recipes = [pinned.recipe]
    elif machine.gpu.device == "cpu":  # nothing to offload to
        recipes = ["zero0"] if machine.ranks == 1 else ["zero1", "zero2", "zero0", "zero3"]
    elif machine.ranks == 1:
        recipes = ["zero0", "zero2_offload", "zero3_offload"]
    else:
        recipes = ["zero1", "zero2", "zero0", "zero3", "zero2_offload", "zero3_offload"]
        recipes += ["zero3_plus"] if machine.nodes > 1 else []
    kinds = CHECKPOINTING if pinned.checkpointing is None else (pinned.checkpointing,)
    for recipe in recipes:
        strategy = with_recipe(switches, recipe, model.hidden_size)
        offloads = (strategy.offload_optimizer, strategy.offload_param)
        zero = Zero(strategy.stage, *offloads, strategy.quantized)
        # A recipe that the user set is refused by the check of its JSON, with more to say.
        if pinned.recipe is None and conflicts(Case(train, zero=zero)):
            continue
        for checkpointing in kinds:
            yield replace(strategy, checkpointing=checkpointing)


def _best_micro(
    workload: Workload,
    machine: Machine,
    strategy: Strategy,
    pinned: int | None,
    mfu: float | None,
) -> Candidate:
    """The largest micro-batch that fits; the smallest one, with what it lacks, when none does."""
    groups = machine.ranks // strategy.sequence_parallel
    per_rank = workload.sequences // groups
    if pinned is not None:
        sizes = [pinned]
    else:
        most = MOST_MICRO_TOKENS * strategy.sequence_parallel // workload.sequence_length
        most = min(max(1, most), per_rank)
        sizes = [size for size in range(most, 0, -1) if per_rank % size == 0]
    for size in sizes:
        sized = replace(strategy, micro=size, accumulation=per_rank // size)
        candidate = _evaluate(workload, machine, sized, mfu)
        if candidate.fits:
            break
    return candidate


def _evaluate(
    workload: Workload, machine: Machine, strategy: Strategy, mfu: float | None
) -> Candidate:
    memory = memory_per_rank(workload, strategy)
    traffic = communication_per_step(workload, strategy)
    host = host_bytes_per_rank(workload, strategy) * strategy.ranks_per_node
    if mfu is None:
        mfu = default_mfu(workload, strategy, machine.gpu)
    time = step_time(workload, strategy, traffic, machine.gpu, mfu=mfu)
    misfit = None
    if memory.total > machine.usable:
        needs = format_size(memory.total)
        misfit = f"needs {needs} per GPU, {format_size(machine.usable)} are planned with"
    elif host > machine.host_memory:
        misfit = (
            f"needs {format_size(host)} of host memory per node, "
            f"{format_size(machine.host_memory)} are assumed"
        )
    return Candidate(strategy, memory, host, traffic, time, misfit)


def _tier(strategy: Strategy) -> int:
    """0; 1 with offload, 2 with quantized traffic: taken only when no lower tier fits."""
    return 2 if strategy.quantized else int(strategy.offloads)


def _leaner(workload: Workload, machine: Machine, run: Strategy) -> Iterator[Strategy]:
    """Less memory per rank: MLPs in chunks; then also sequences over more ranks of a node."""
    yield replace(run, tiled_mlp=True)
    for size in ranks_that_can_share(workload.model):
        divides = machine.gpus_per_node % size == 0 and workload.sequence_length % size == 0
        if size > run.sequence_parallel and size % run.sequence_parallel == 0 and divides:
            yield replace(run, tiled_mlp=True, sequence_parallel=size)


def _proposals(
    machine: Machine, here: list[Candidate], fits: Callable[[Machine], bool]
) -> Iterator[str]:
    """Other settings on this machine; else more GPUs, larger GPUs, more host memory. All tried.

    `here`: the best candidates of other settings, the run's own switches first.
    """
    for candidate in here:
        if candidate.fits:
            words = settings_of(candidate.strategy)
            if here[0].strategy.muon and not candidate.strategy.muon:
                words.append("train.optimizer=adamw train.max_grad_norm=1")
            yield " ".join(words)
            return
    larger = machine
    while larger.ranks < MOST_RANKS:
        if larger.gpus_per_node >= 8 or machine.nodes > 1:
            larger = replace(larger, nodes=larger.nodes * 2)
        else:
            per_node = min(8, larger.gpus_per_node * 2)
            host = machine.host_memory * per_node // machine.gpus_per_node
            larger = replace(larger, gpus_per_node=per_node, host_memory=host)
        if fits(larger):
            yield larger.flags
            break
    known = (gpu for gpu in map(find_gpu, GPU_NAMES) if not gpu.note)  # figures were checked
    for gpu in sorted(known, key=lambda gpu: (gpu.memory, gpu.peak, gpu.name)):
        if gpu.memory > machine.gpu.memory and fits(replace(machine, gpu=gpu)):
            yield replace(machine, gpu=gpu).flags
            break
    if here[0].memory.total <= machine.usable:
        yield f"--host-memory {-(-here[0].host_bytes // 2**30)}GiB, if a node has that much"


def settings_of(strategy: Strategy) -> list[str]:
    """What to add to the command line of a run, so that it trains in this way."""
    words = [
        "--deepspeed",
        strategy.recipe,
        f"train.per_device_train_batch_size={strategy.micro}",
        f"train.gradient_checkpointing={strategy.checkpointing}",
    ]
    if strategy.tiled_mlp:
        words.append("train.mlp_kernel=tiled")
    if strategy.sequence_parallel > 1:
        words.append(f"train.sequence_parallel_size={strategy.sequence_parallel}")
    return words
