"""How a model is trained: all that decides memory, communication and time besides the workload.

A `Strategy` is a DeepSpeed recipe (stage, offload, buckets), a number of ranks, a batch per rank,
and the run's switches. Only `strategy_of` makes a strategy from sections of the configuration; the
recipe's values are read from the DeepSpeed JSON.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

from wikillm.config.compatibility import Zero
from wikillm.config.deepspeed import DeepSpeedFile, read_deepspeed
from wikillm.config.precision import Precision
from wikillm.config.schema import ModelSection
from wikillm.config.schema_train import TrainSection
from wikillm.config.schema_types import Checkpointing
from wikillm.core.errors import ConfigError
from wikillm.plan.workload import Workload

Loss = Literal["chunked", "fp8", "stock"]
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """`ranks` in nodes of `ranks_per_node`; a step is `accumulation` x `micro` sequences per rank.

    `sequence_parallel` ranks share sequences, and each of them holds its part of every sequence.
    Buckets and `max_live` (ZeRO-3: gathered weights that may stay) are in elements.
    """

    recipe: str
    stage: int
    ranks: int
    ranks_per_node: int
    micro: int
    accumulation: int
    precision: Precision
    checkpointing: Checkpointing = "none"
    loss: Loss = "chunked"
    device: Device = "cuda"
    muon: bool = False
    ema: bool = False
    tiled_mlp: bool = False
    sequence_parallel: int = 1
    masked: bool = False  # T x T masks by SDPA, keys and values repeated for each query head
    # Set by the recipe.
    offload_optimizer: bool = False
    offload_param: bool = False
    quantized: bool = False  # hpZ, qwZ, qgZ: all weights on each node, less traffic between nodes
    reduce_bucket: int = 500_000_000
    overlap: bool = False  # a second reduce bucket fills while the first is sent
    max_live: int = 1_000_000_000

    @property
    def bytes_per_weight(self) -> int:
        return 4 if self.precision == "fp32" else 2

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.ranks_per_node)

    @property
    def offloads(self) -> bool:
        return self.offload_optimizer or self.offload_param

    def tokens(self, workload: Workload) -> int:
        """Tokens in a rank's micro-step."""
        return self.micro * workload.sequence_length // self.sequence_parallel


def strategy_of(
    model: ModelSection,
    train: TrainSection,
    recipe: str | None,
    *,
    ranks: int,
    ranks_per_node: int,
    precision: Precision,
    micro: int = 1,
    accumulation: int = 1,
    device: Device = "cuda",
) -> Strategy:
    """The strategy of a run with these sections; without a recipe it is plain data parallel.

    Raises ConfigError if the DeepSpeed JSON cannot be read.
    """
    kernel = train.loss_kernel
    plain = Strategy(
        recipe="ddp",
        stage=0,
        ranks=ranks,
        ranks_per_node=min(ranks, ranks_per_node),
        micro=micro,
        accumulation=accumulation,
        precision=precision,
        device=device,
        checkpointing=train.gradient_checkpointing,
        # The other kernels take as much memory as the chunked loss.
        loss=kernel if kernel in ("stock", "fp8") else "chunked",
        muon=uses_muon(train),
        ema=train.ema_decay > 0,
        tiled_mlp=train.mlp_kernel == "tiled",
        sequence_parallel=train.sequence_parallel_size,
        # Flash attention keeps documents apart without a mask.
        masked=train.document_mask == "on" and model.attn_implementation == "sdpa",
    )
    return plain if recipe is None else with_recipe(plain, recipe, model.hidden_size)


def uses_muon(train: TrainSection) -> bool:
    """Whether Muon trains the layers' matrices, which then have one moment instead of two."""
    match train.optimizer:
        case "muon":
            return True
        case "adamw":
            return False
        case _:  # a new optimizer needs formulas of its own
            assert_never(train.optimizer)


def with_recipe(strategy: Strategy, recipe: str, hidden_size: int) -> Strategy:
    """The strategy with the values of a DeepSpeed JSON.

    "auto" buckets have hidden_size squared elements, as with Hugging Face. Raises ConfigError for a
    JSON that cannot be read.
    """
    file = read_recipe(recipe)
    zero = Zero.of(file.json)

    def size(name: str, default: int, auto: int) -> int:
        value: Any = file.get(f"zero_optimization.{name}", default)
        if value == "auto" or value is None:
            return auto
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            place = file.where(f"zero_optimization.{name}")
            raise ConfigError("The planner cannot read this value.", got=f"{place}: {value!r}")
        return int(value)

    square = hidden_size * hidden_size
    stage = size("stage", 0, 0)
    if stage > 3:
        place = file.where("zero_optimization.stage")
        raise ConfigError("ZeRO has the stages 0 to 3.", got=f"{place}: {stage}")
    return replace(
        strategy,
        recipe=recipe,
        stage=stage,
        offload_optimizer=zero.offload_optimizer,
        offload_param=zero.offload_param,
        quantized=bool(file.get("zero_optimization.zero_quantized_weights", False)),
        reduce_bucket=size("reduce_bucket_size", 500_000_000, square),
        overlap=bool(file.get("zero_optimization.overlap_comm", False)),
        max_live=size("stage3_max_live_parameters", 1_000_000_000, 1_000_000_000),
    )


@functools.cache
def read_recipe(recipe: str) -> DeepSpeedFile:
    """Like `read_deepspeed`, but reads each recipe once."""
    return read_deepspeed(recipe)
