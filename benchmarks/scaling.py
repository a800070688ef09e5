"""Weak scaling of ZeRO-1, 2, 3 and hpZ by the plan: projected for H100s, not run.

    python benchmarks/scaling.py                                  # 7B, then 1.5B
    python benchmarks/scaling.py --preset 32b --micro 1 --accumulation 4

Every GPU keeps its micro-batch and accumulation, so the global batch grows with their number. What
does not fit has no step. "efficiency" is the speed of a GPU against that of the recipe on 8.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of this folder: see kernels.py

from benchmarks.record import table
from wikillm.config.load import load
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import find_gpu
from wikillm.plan.memory import KEPT_FREE, memory_per_rank
from wikillm.plan.roofline import default_mfu
from wikillm.plan.strategy import Strategy, with_recipe
from wikillm.plan.time import step_time
from wikillm.plan.workload import Workload

RECIPES = {"zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "zero3_plus": "hpZ, qwZ, qgZ"}
SIZES = (8, 64, 128, 512)
VOCAB = 152_064
LENGTH = 4096
CASES = (("7b", 2, 4), ("1.5b", 4, 1))
HEADER = ["recipe", "GPUs", "GiB inside", "GiB between nodes", "step s", "waits ms"]
HEADER += ["tokens/s/GPU", "efficiency"]


def rows(preset: str, micro: int, accumulation: int) -> list[list[str]]:
    """A row per recipe and number of GPUs; GiB are of a GPU and step."""
    words = [f"model.preset={preset}", "data.path=unused", "train.max_steps=1"]
    workload = Workload(load(None, words).config.model, VOCAB, LENGTH)
    gpu = find_gpu("h100")
    found = []
    for recipe, name in RECIPES.items():
        first = None
        for ranks in SIZES:
            plain = Strategy("ddp", 0, ranks, 8, micro, accumulation, "bf16", checkpointing="full")
            strategy = with_recipe(plain, recipe, workload.model.hidden_size)
            traffic = communication_per_step(workload, strategy)
            moved = [f"{traffic.inside_node / 2**30:.1f}", f"{traffic.between_nodes / 2**30:.1f}"]
            if strategy.quantized and ranks == 8:  # one node has nothing to quantize for
                continue
            if memory_per_rank(workload, strategy).total > (1 - KEPT_FREE) * gpu.memory:
                found.append([name, f"{ranks}", *moved, "does not fit", "", "", ""])
                continue
            mfu = default_mfu(workload, strategy, gpu)
            time = step_time(workload, strategy, traffic, gpu, mfu=mfu)
            speed = micro * accumulation * LENGTH / time.total
            first = first or speed
            cells = [f"{time.total:.2f}", f"{time.exposed * 1e3:.0f}", f"{speed:,.0f}"]
            found.append([name, f"{ranks}", *moved, *cells, f"{speed / first:.1%}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", help="default: 7b with 2 x 4, and 1.5b with 4 x 1")
    parser.add_argument("--micro", type=int, default=2, help="sequences of 4,096 tokens")
    parser.add_argument("--accumulation", type=int, default=4)
    args = parser.parse_args()
    cases = CASES
    if args.preset:
        cases = ((args.preset, args.micro, args.accumulation),)
    for preset, micro, accumulation in cases:
        print(f"{preset}, {micro} x {accumulation} sequences a GPU and step, full checkpointing\n")
        print(table(HEADER, rows(preset, micro, accumulation)) + "\n")


if __name__ == "__main__":
    main()
