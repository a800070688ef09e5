"""The plan beside published throughput: same model, GPU, micro-batch, checkpointing and ranks.

    python benchmarks/published.py                 # by GPU, size and number of GPUs, then the worst
    python benchmarks/published.py --all           # every row
    python benchmarks/published.py --fit           # the roofline's constants on a grid, all rows

published.csv has the rows of these sources, all that are in 16 bit and sharded like ZeRO-3 without
offload, tensor or pipeline parallelism:

    llm-foundry  mosaicml/llm-foundry, scripts/train/benchmarking/README.md (8c8dd48, 2025-07-21)
    OLMo-core    allenai/OLMo-core, README.md of v1.9 and src/scripts/train/OLMo2-*.py; the number
                 of GPUs is not published but for 32B: 64 are assumed
    torchtitan   pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md; H100 of 96 GB
                 with 2.4 TB/s and a limit of 500 W

MPT's MLP has two matrices of 4 h: planned as three of 8/3 h, which are as many weights.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import csv
import functools
import itertools
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

from benchmarks.record import table
from wikillm.config.load import load
from wikillm.config.schema import ModelSection
from wikillm.plan import roofline
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import Gpu, find_gpu
from wikillm.plan.strategy import Strategy, with_recipe
from wikillm.plan.time import step_time
from wikillm.plan.workload import Workload

# Hidden size, layers, query heads, key-value heads, MLP width, vocabulary, tied embedding.
MODELS = {
    "mpt-125m": (768, 12, 12, 12, 2048, 50368, True),
    "mpt-350m": (1024, 24, 16, 16, 2731, 50368, True),
    "mpt-760m": (1536, 24, 12, 12, 4096, 50368, True),
    "mpt-1b": (2048, 24, 16, 16, 5461, 50368, True),
    "mpt-3b": (2560, 32, 20, 20, 6827, 50368, True),
    "mpt-7b": (4096, 32, 32, 32, 10923, 50368, True),
    "mpt-13b": (5120, 40, 40, 40, 13653, 50368, True),
    "mpt-30b": (7168, 48, 56, 56, 19115, 50368, True),
    "mpt-70b": (8192, 80, 64, 64, 21845, 50368, True),
    "olmo2-1b": (2048, 16, 16, 16, 8192, 100352, False),
    "olmo2-7b": (4096, 32, 32, 32, 11008, 100352, False),
    "olmo2-13b": (5120, 40, 40, 40, 13824, 100352, False),
    "olmo2-32b": (5120, 64, 40, 8, 27648, 100352, False),
    "llama3-8b": (4096, 32, 32, 8, 14336, 128256, False),
}
FAR_OFF = 0.15
SHORT = 4096
"""Up to this length products and memory traffic decide the time; beyond it the attention kernel."""


@dataclass(frozen=True)
class Row:
    """What somebody published. `speed`: tokens/s per GPU."""

    source: str
    gpu: str
    model: str
    length: int
    gpus: int
    micro: int
    accumulation: int
    checkpointing: Any
    speed: float

    @property
    def error(self) -> float:
        """(planned - published) / published."""
        return self.planned / self.speed - 1

    @property
    def planned(self) -> float:
        """Tokens/s per GPU by the planner's formulas, the assumed MFU included."""
        gpu = _gpu(self.gpu)
        workload = Workload(_model(self.model), MODELS[self.model][5], self.length)
        plain = Strategy(
            "ddp", 0, self.gpus, min(self.gpus, 8), self.micro, self.accumulation, "bf16",
            checkpointing=self.checkpointing,
        )  # fmt: skip
        strategy = with_recipe(plain, "zero3", workload.model.hidden_size)
        traffic = communication_per_step(workload, strategy)
        mfu = roofline.default_mfu(workload, strategy, gpu)
        time = step_time(workload, strategy, traffic, gpu, mfu=mfu)
        return self.accumulation * self.micro * self.length / time.total


@functools.cache
def _model(name: str) -> ModelSection:
    hidden, layers, heads, kv_heads, width, vocab, tied = MODELS[name]
    words = f"architecture=llama hidden_size={hidden} num_hidden_layers={layers} "
    words += f"num_attention_heads={heads} num_key_value_heads={kv_heads} "
    words += f"intermediate_size={width} vocab_size={vocab} tie_word_embeddings={tied}"
    fields = [f"model.{word}" for word in words.split()]
    return load(None, [*fields, "data.path=unused", "train.max_steps=1"]).config.model


@functools.cache
def _gpu(name: str) -> Gpu:
    if name == "h100-96gb":
        return replace(find_gpu("h100"), memory_bandwidth=2.4e12)
    return find_gpu(name)


def published() -> list[Row]:
    with open(REPO / "benchmarks/published.csv", encoding="utf-8", newline="") as file:
        return [
            Row(r["source"], r["gpu"], r["model"], int(r["sequence_length"]), int(r["gpus"]),
                int(r["micro_batch"]), int(r["accumulation"]), r["checkpointing"],
                float(r["tokens_per_second_per_gpu"]))
            for r in csv.DictReader(file)
        ]  # fmt: skip


def cells(row: Row) -> list[str]:
    return [
        row.source, row.model, row.gpu, f"{row.length:,}", f"{row.gpus}",
        f"{row.micro} x {row.accumulation}", row.checkpointing, f"{row.speed:,.0f}",
        f"{row.planned:,.0f}", f"{row.error:+.0%}",
    ]  # fmt: skip


HEADER = ["source", "model", "GPU", "T", "GPUs", "micro x accumulation", "checkpointing"]
HEADER += ["published tokens/s/GPU", "planned", "error"]


def groups(rows: Iterable[Row]) -> list[list[str]]:
    """By GPU, model and checkpointing: rows, mean error, mean of absolute errors, range."""
    order = list(MODELS)

    def key(row: Row) -> tuple[str, str, int, str]:
        return row.source, row.gpu, order.index(row.model), row.checkpointing

    found = []
    for (source, gpu, model, kind), members in itertools.groupby(sorted(rows, key=key), key):
        errors = [row.error for row in members]
        mean = statistics.mean(errors)
        spread = f"{min(errors):+.0%} to {max(errors):+.0%}"
        found.append([source, order[model], gpu, kind, f"{len(errors)}", f"{mean:+.0%}", spread])
    return found


def by_gpus(rows: list[Row]) -> list[list[str]]:
    """Of H100s: their number, rows, mean error."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.gpus):
        if row.gpu == "h100":
            found.setdefault(row.gpus, []).append(row.error)
    return [[f"{n}", f"{len(e)}", f"{statistics.mean(e):+.0%}"] for n, e in found.items()]


def said(rows: list[Row]) -> str:
    """One line over all rows."""
    errors = [abs(row.error) for row in rows]
    near = sum(error <= FAR_OFF for error in errors)
    return (
        f"{len(rows)} rows: median of the absolute error {statistics.median(errors):.1%}, mean "
        f"{statistics.mean(errors):.1%}; {near} rows within {FAR_OFF:.0%}"
    )


def fit(rows: list[Row]) -> None:
    """Mean absolute error for each choice of the constants, the best last."""
    short = [row for row in rows if row.length <= SHORT]
    ampere = list(roofline.PRODUCT_SHARE)
    found = []
    grid = itertools.product((0.56, 0.60, 0.64), (0.72, 0.76, 0.80), (7.0, 8.0, 9.0, 10.0))
    for hopper, a100, passes in grid:
        roofline.HOPPER_PRODUCTS = hopper
        roofline.PRODUCT_SHARE = dict.fromkeys(ampere, a100)
        roofline.PASSES = passes
        found.append((statistics.mean(abs(row.error) for row in short), hopper, a100, passes))
    for one in sorted(found, reverse=True)[-5:]:
        print("mean {:.2%}: products {}, on A100s {}, passes {}".format(*one))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--fit", action="store_true", help="try the roofline's constants on a grid")
    args = parser.parse_args()
    rows = published()
    if args.fit:
        fit(rows)
        return
    if args.all:
        print(table(HEADER, [cells(row) for row in rows]))
    else:
        header = ["source", "model", "GPU", "checkpointing", "rows", "mean error", "range"]
        print(table(header, groups(rows)))
        print(f"\nBy number of GPUs, T <= {SHORT:,}:")
        short = [row for row in rows if row.length <= SHORT]
        print("\n" + table(["H100s", "rows", "mean error"], by_gpus(short)))
    print(f"\nall: {said(rows)}")
    print(f"T <= {SHORT:,}: {said([row for row in rows if row.length <= SHORT])}")


if __name__ == "__main__":
    main()
