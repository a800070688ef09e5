"""One way to train a model on N GPUs: what memory, communication and time are computed from.

A `Setup` is a DeepSpeed recipe as the planner sees it (stage, offload, hpZ, buckets) with a micro-batch, an
accumulation and a kind of checkpointing. `setup_from_recipe` reads it out of the DeepSpeed JSON itself, so that the
recipe has one home.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from wikillm.config.deepspeed import DeepSpeedFile, read_deepspeed
from wikillm.config.precision import Precision
from wikillm.config.schema import Checkpointing, ModelSection
from wikillm.core.errors import ConfigError

Loss = Literal["chunked", "fp8", "stock"]
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The model and the sequences: counts of elements. `largest_module` is the biggest thing ZeRO-3 gathers at once."""

    model: ModelSection
    vocab_size: int
    sequence_length: int
    parameters: int
    largest_module: int
    hidden_matrices: int = 0  # elements that Muon trains, where it does


@dataclass(frozen=True, slots=True)
class Setup:
    """`ranks` GPUs in nodes of `ranks_per_node`; a step is `accumulation` micro-steps of `micro` sequences per rank.

    Of those sequences a rank holds 1 / `sequence_parallel`, where so many ranks share them.
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
    offload_optimizer: bool = False
    offload_param: bool = False
    quantized: bool = False  # hpZ, qwZ and qgZ: a second copy of the weights per node, small traffic between nodes
    reduce_bucket: int = 500_000_000  # elements
    allgather_bucket: int = 500_000_000
    overlap: bool = False  # a second reduce bucket fills while the first is sent
    max_live: int = 1_000_000_000  # ZeRO-3: gathered weights that may stay, in elements
    device: Device = "cuda"
    muon: bool = False
    ema: bool = False
    tiled_mlp: bool = (
        False  # intermediate activations in chunks, computed again in the backward pass
    )
    sequence_parallel: int = 1
    masked: bool = (
        False  # document masks by SDPA: T x T, and keys and values repeated for every query head
    )

    @property
    def bytes_per_weight(self) -> int:
        return 4 if self.precision == "fp32" else 2

    def tokens(self, shape: Shape) -> int:
        """Tokens of a rank's micro-step."""
        return self.micro * shape.sequence_length // self.sequence_parallel

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.ranks_per_node)


def loss_of(kernel: str) -> Loss:
    """What the planner tells apart of train.loss_kernel: all but fp8 and stock need the memory of the chunked loss."""
    return "stock" if kernel == "stock" else "fp8" if kernel == "fp8" else "chunked"


@functools.cache
def _read(recipe: str) -> DeepSpeedFile:
    return read_deepspeed(recipe)


def setup_from_recipe(
    recipe: str,
    *,
    hidden_size: int,
    ranks: int,
    ranks_per_node: int,
    micro: int,
    accumulation: int,
    precision: Precision,
    checkpointing: Checkpointing,
    loss: Loss = "chunked",
    device: Device = "cuda",
) -> Setup:
    """A setup with what the DeepSpeed JSON says. Buckets left "auto" are Hugging Face's hidden_size squared."""
    file = _read(recipe)

    def offloads(name: str) -> bool:
        return str(file.get(f"zero_optimization.{name}.device", "none")) != "none"

    def size(name: str, default: int, auto: int) -> int:
        value: Any = file.get(f"zero_optimization.{name}", default)
        if value == "auto" or value is None:
            return auto
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(
                "The planner cannot read this.",
                got=f"{file.where(f'zero_optimization.{name}')}: {value!r}",
            )
        return int(value)

    square, stage = hidden_size * hidden_size, size("stage", 0, 0)
    if stage > 3:
        raise ConfigError(
            "ZeRO has the stages 0 to 3.", got=f"{file.where('zero_optimization.stage')}: {stage}"
        )
    return Setup(
        recipe=recipe,
        stage=stage,
        ranks=ranks,
        ranks_per_node=min(ranks, ranks_per_node),
        micro=micro,
        accumulation=accumulation,
        precision=precision,
        checkpointing=checkpointing,
        loss=loss,
        offload_optimizer=offloads("offload_optimizer"),
        offload_param=offloads("offload_param"),
        quantized=bool(file.get("zero_optimization.zero_quantized_weights", False)),
        reduce_bucket=size("reduce_bucket_size", 500_000_000, square),
        allgather_bucket=size("allgather_bucket_size", 500_000_000, square),
        overlap=bool(file.get("zero_optimization.overlap_comm", False)),
        max_live=size("stage3_max_live_parameters", 1_000_000_000, 1_000_000_000),
        device=device,
    )
