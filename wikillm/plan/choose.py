"""Chooses recipe, micro-batch and accumulation: ranks the candidates that fit by estimated time.

Each recipe and kind of checkpointing gets the largest micro-batch that fits, up to 64k tokens.
Settings of the user (recipe, micro-batch, checkpointing) are kept. Times within 2 % count as equal:
then the simpler candidate wins. Offload ranks below every candidate that fits without it, since
host speeds are the least certain assumption. `zero3_plus` ranks last: its 4-bit gradients change
the arithmetic, which is the user's decision. If nothing fits, the error proposes what would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from wikillm.config.checks import ranks_that_can_share
from wikillm.config.compatibility import Case, Zero, conflicts
from wikillm.config.origin import Origin
from wikillm.config.resolved import Resolved
from wikillm.config.schema import ModelSection
from wikillm.config.schema_train import TrainSection
from wikillm.config.schema_types import Checkpointing
from wikillm.core.errors import ConfigError
from wikillm.core.units import format_size
from wikillm.plan.communication import Communication, communication_per_step
from wikillm.plan.gpus import GPU_NAMES, Gpu, find_gpu, planned_precision
from wikillm.plan.memory import KEPT_FREE, Memory, host_bytes_per_rank, memory_per_rank
from wikillm.plan.roofline import default_mfu
from wikillm.plan.strategy import Strategy, read_recipe, strategy_of, with_recipe
from wikillm.plan.time import StepTime, step_time
from wikillm.plan.workload import Workload, describe_workload

MAX_MICRO_TOKENS = 65_536
"""Largest micro-step in tokens per rank; more tokens no longer make matrix products faster."""
SAME_TIME = 1.02
"""Ratio of step times up to which two candidates count as equally fast."""
MAX_RANKS = 4096
"""Largest machine that a proposal names."""
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full_but_attention", "full")
"""Kinds of checkpointing, the one with the least recomputation first."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The user's settings, which a plan keeps; None leaves the choice to the planner."""

    recipe: str | None = None
    micro: int | None = None
    checkpointing: Checkpointing | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """`nodes` x `gpus_per_node` equal GPUs.

    Attributes:
        host_memory: bytes per node, for offload.
        mfu: the MFU that the user assumes; None for `default_mfu`.
        price: cost of a GPU-hour; None if no cost is computed.
        storage_rate: bytes/s of a node. 16 Gbit/s to a shared file system is usual; a local NVMe
            disk is faster.
    """

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    host_memory: int
    mfu: float | None = None
    price: float | None = None
    storage_rate: float = 2e9

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> int:
        """Bytes of a GPU that a plan may use."""
        return int((1 - KEPT_FREE) * self.gpu.memory)

    @property
    def flags(self) -> str:
        return f"{self.gpu.flags} --nodes {self.nodes} --gpus-per-node {self.gpus_per_node}"

    def assumed_mfu(self, workload: Workload, strategy: Strategy) -> float:
        """The MFU without recomputation that a plan assumes."""
        return default_mfu(workload, strategy, self.gpu) if self.mfu is None else self.mfu


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy on a machine.

    Attributes:
        host_bytes: host memory per node.
        misfit: the reason why the strategy does not fit; None if it fits.
    """

    strategy: Strategy
    memory: Memory
    host_bytes: int
    traffic: Communication
    time: StepTime
    misfit: str | None

    @property
    def fits(self) -> bool:
        return self.misfit is None


def choose(resolved: Resolved, workload: Workload, machine: Machine) -> list[Candidate]:
    """`rank_candidates` for the user's settings. Raises ConfigError if no candidate fits."""
    train = resolved.config.train
    origins = resolved.origins
    # If the batch follows from the micro-batch, the micro-batch cannot be chosen.
    free = Pinned(micro=workload.micro if train.global_batch_tokens is None else None)
    pinned = Pinned(micro=workload.micro)
    if origins["deepspeed.config"].is_user:
        pinned = replace(pinned, recipe=resolved.config.deepspeed.config)
    if origins["train.gradient_checkpointing"].is_user:
        pinned = replace(pinned, checkpointing=train.gradient_checkpointing)
    base = _base_strategy(workload, train, origins, machine)
    candidates = rank_candidates(train, workload, machine, base, pinned)
    if candidates[0].fits:
        return candidates

    # Try other settings on this machine, then other machines.
    variants = [(train, variant) for variant in (base, *_with_less_memory(workload, machine, base))]
    tokens = workload.train_tokens
    if base.muon:  # Muon excludes offload
        adamw = train.model_copy(update={"optimizer": "adamw", "max_grad_norm": 1.0})
        variants.append((adamw, replace(base, muon=False)))
    here = [
        rank_candidates(section, workload, machine, strategy, free)[0]
        for section, strategy in variants
    ]

    def fits(other: Machine) -> bool:
        try:
            again = describe_workload(resolved, ranks=other.ranks, train_tokens=tokens)
            base = _base_strategy(again, train, origins, other)
        except ConfigError:
            return False
        return rank_candidates(train, again, other, base, pinned)[0].fits

    fixes = list(_proposals(machine, here, fits))
    smallest = candidates[0]
    parts = sorted(smallest.memory.parts().items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {format_size(size)}" for name, size in parts)
    raise ConfigError(
        f"{workload.model.label} does not fit on "
        f"{machine.nodes} x {machine.gpus_per_node} {machine.gpu.name}.",
        got=f"the smallest, {' '.join(settings_of(smallest.strategy))}: {smallest.misfit}\n"
        f"largest parts: {largest}",
        fix="\nor ".join(fixes) if fixes else "a smaller model, or GPUs with more memory",
    )


def rank_candidates(
    train: TrainSection,
    workload: Workload,
    machine: Machine,
    base: Strategy,
    pinned: Pinned,
) -> list[Candidate]:
    """Candidates that fit, the best first, then candidates that do not fit, the smallest first.

    Args:
        train: recipes that do not work with these settings are left out.
        base: the run's strategy before a recipe is applied.
    """
    candidates = [
        _best_micro(workload, machine, strategy, pinned.micro)
        for strategy in _strategies(train, workload.model, machine, base, pinned)
    ]
    fitting = [candidate for candidate in candidates if candidate.fits]
    # Within a tier, times up to SAME_TIME of the best count as equal.
    best: dict[int, float] = {}
    for candidate in fitting:
        tier = _tier(candidate.strategy)
        best[tier] = min(candidate.time.total, best.get(tier, candidate.time.total))

    def rank(candidate: Candidate) -> tuple[float, ...]:
        strategy = candidate.strategy
        tier = _tier(strategy)
        time = max(candidate.time.total, best[tier] * SAME_TIME)
        # Ties go to less recomputation, then to the lower stage, with zero0 last.
        stage = 4 if strategy.stage == 0 and strategy.ranks > 1 else strategy.stage
        recomputes = CHECKPOINTING.index(strategy.checkpointing)
        return tier, time, recomputes, stage, -strategy.micro

    misfits = (candidate for candidate in candidates if not candidate.fits)
    return sorted(fitting, key=rank) + sorted(misfits, key=lambda misfit: misfit.memory.total)


def _base_strategy(
    workload: Workload, train: TrainSection, origins: Mapping[str, Origin], machine: Machine
) -> Strategy:
    """The run's strategy on a machine, before a recipe is applied."""
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
    base: Strategy,
    pinned: Pinned,
) -> Iterator[Strategy]:
    """Strategies to compare: each recipe with every kind of checkpointing, at micro-batch 1."""
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
        strategy = with_recipe(base, recipe, model.hidden_size)
        # `check_recipe` refuses a recipe that the user has set, with a more detailed error.
        zero = Zero.of(read_recipe(recipe).json)
        if pinned.recipe is None and conflicts(Case(train, zero=zero)):
            continue
        for checkpointing in kinds:
            yield replace(strategy, checkpointing=checkpointing)


def _best_micro(
    workload: Workload, machine: Machine, strategy: Strategy, pinned: int | None
) -> Candidate:
    """The candidate with the largest micro-batch that fits; if none fits, with the smallest."""
    groups = machine.ranks // strategy.sequence_parallel
    per_rank = workload.sequences // groups
    if pinned is not None:
        sizes = [pinned]
    else:
        by_tokens = MAX_MICRO_TOKENS * strategy.sequence_parallel // workload.sequence_length
        largest = min(max(1, by_tokens), per_rank)
        sizes = [size for size in range(largest, 0, -1) if per_rank % size == 0]
    for size in sizes:
        sized = replace(strategy, micro=size, accumulation=per_rank // size)
        candidate = _evaluate(workload, machine, sized)
        if candidate.fits:
            break
    return candidate


def _evaluate(workload: Workload, machine: Machine, strategy: Strategy) -> Candidate:
    memory = memory_per_rank(workload, strategy)
    traffic = communication_per_step(workload, strategy)
    host = host_bytes_per_rank(workload, strategy) * strategy.ranks_per_node
    mfu = machine.assumed_mfu(workload, strategy)
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
    """0; 1 with offload; 2 with quantized traffic. A tier is used only if no lower tier fits."""
    return 2 if strategy.quantized else int(strategy.offloads)


def _with_less_memory(workload: Workload, machine: Machine, run: Strategy) -> Iterator[Strategy]:
    """Variants of `run` that need less memory per rank: tiled MLPs, then also shared sequences."""
    yield replace(run, tiled_mlp=True)
    for size in ranks_that_can_share(workload.model):
        divides = machine.gpus_per_node % size == 0 and workload.sequence_length % size == 0
        if size > run.sequence_parallel and size % run.sequence_parallel == 0 and divides:
            yield replace(run, tiled_mlp=True, sequence_parallel=size)


def _proposals(
    machine: Machine, here: list[Candidate], fits: Callable[[Machine], bool]
) -> Iterator[str]:
    """Fixes that were tried and fit: other settings; or more GPUs, larger GPUs, more host memory.

    `here`: the best candidates of other settings on this machine, the run's own settings first.
    """
    for candidate in here:
        if candidate.fits:
            words = settings_of(candidate.strategy)
            if here[0].strategy.muon and not candidate.strategy.muon:
                words.append("train.optimizer=adamw train.max_grad_norm=1")
            yield " ".join(words)
            return
    larger = machine
    while larger.ranks < MAX_RANKS:
        if larger.gpus_per_node >= 8 or machine.nodes > 1:
            larger = replace(larger, nodes=larger.nodes * 2)
        else:
            per_node = min(8, larger.gpus_per_node * 2)
            host = machine.host_memory * per_node // machine.gpus_per_node
            larger = replace(larger, gpus_per_node=per_node, host_memory=host)
        if fits(larger):
            yield larger.flags
            break
    # Propose only GPUs whose figures were checked against a data sheet.
    known = (gpu for gpu in map(find_gpu, GPU_NAMES) if not gpu.note)
    for gpu in sorted(known, key=lambda gpu: (gpu.memory, gpu.peak, gpu.name)):
        if gpu.memory > machine.gpu.memory and fits(replace(machine, gpu=gpu)):
            yield replace(machine, gpu=gpu).flags
            break
    if here[0].memory.total <= machine.usable:
        yield f"--host-memory {-(-here[0].host_bytes // 2**30)}GiB, if a node has that much"


def settings_of(strategy: Strategy) -> list[str]:
    """Command-line words that make a run train with this strategy."""
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
