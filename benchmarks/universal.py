"""What DeepSpeed's own conversion of checkpoints can do: 2 ranks -> 1, by stage and optimizer.

    python benchmarks/universal.py

Two gloo ranks train a small network for 5 steps at ZeRO 0 to 3, with AdamW and Muon, save it with
DeepSpeed, and train 5 steps more. `python -m deepspeed.checkpoint.ds_to_universal` converts each
checkpoint, and one rank loads it with `load_universal` and trains the same 5 steps. The table has
what failed, or the largest relative difference of the losses.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS = 5
ROWS = 8
CASES = [(stage, optimizer) for optimizer in ("AdamW", "Muon") for stage in range(4)]
OPTIONS = ((), ("--inject_missing_state",))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        trained = _ranks(2, work, "train")
        converted = {case: _convert(work / _name(*case)) for case in CASES}
        resumed = _ranks(1, work, "resume")
    print(
        "| optimizer | stage | training on 2 ranks | conversion | loading and training on 1 rank |"
    )
    print("|---|---|---|---|---|")
    for stage, optimizer in CASES:
        name = _name(stage, optimizer)
        before = trained[name]
        after = resumed[name]
        said = str(after if isinstance(before, list) else before)
        if isinstance(before, list) and isinstance(after, list):
            pairs = zip(before, after, strict=True)
            said = f"losses differ by {max(abs(a - b) / abs(a) for a, b in pairs):.1e}"
        print(f"| {optimizer} | {stage} | {converted[stage, optimizer]} | {said} |")


def _name(stage: int, optimizer: str) -> str:
    return f"{optimizer}-{stage}"


def _ranks(world: int, work: Path, what: str) -> dict[str, Any]:
    """Run all cases on `world` processes of this file; what rank 0 found, by case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environ |= {"WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, what, str(work)]
    running = []
    for rank in range(world):
        with open(work / f"{what}-{rank}.log", "w") as log:
            own = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(command, env=own, stdout=log, stderr=log)
            running.append(process)
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit((work / f"{what}-0.log").read_text()[-3000:])
    found: dict[str, Any] = json.loads((work / f"{what}.json").read_text())
    return found


def _convert(checkpoint: Path) -> str:
    """Convert with DeepSpeed's tool, with as few options as it needs; what came of it."""
    said = ""
    for options in OPTIONS:
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *options]
        command += ["--input_folder", str(checkpoint / "5")]
        command += ["--output_folder", str(checkpoint / "universal")]
        environ = {**os.environ, "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        if done.returncode == 0:
            (checkpoint / "latest_universal").write_text("universal")
            return " ".join(("yes", *options))
        said = done.stderr.strip().splitlines()[-1].replace(str(checkpoint), "CHECKPOINT")
    return said


def _batches(steps: range, rank: int, world: int) -> Iterator[Any]:
    import torch

    for step in steps:
        inputs = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(step))
        share = ROWS // world
        yield inputs[rank * share : (rank + 1) * share]


def _engine(stage: int, optimizer: str, world: int, *, universal: bool) -> Any:
    import deepspeed
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 129), torch.nn.GELU(), torch.nn.Linear(129, 64))
    rate = {"lr": 1e-2} if optimizer == "Muon" else {"lr": 1e-2, "torch_adam": True}
    config = {
        "train_micro_batch_size_per_gpu": ROWS // world,
        "optimizer": {"type": optimizer, "params": rate},
        "zero_optimization": {"stage": stage, "reduce_scatter": optimizer != "Muon"},
        "checkpoint": {"load_universal": universal},
    }
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    return engine


def _losses(engine: Any, steps: range, rank: int, world: int) -> list[float]:
    import torch.distributed as dist

    found = []
    for inputs in _batches(steps, rank, world):
        loss = (engine(inputs) - inputs.roll(1, dims=1)).square().mean()
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        found.append(float(mean) / world)
    return found


def _on_rank(what: str, work: Path) -> None:
    """All cases on this rank; rank 0 writes losses or errors."""
    import deepspeed

    deepspeed.init_distributed("gloo")
    rank = int(os.environ["RANK"])
    world = int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = {}
    for stage, optimizer in CASES:
        name = _name(stage, optimizer)
        place = work / name
        try:
            if what == "train":
                engine = _engine(stage, optimizer, world, universal=False)
                _losses(engine, range(STEPS), rank, world)
                engine.save_checkpoint(str(place), tag="5")
            else:
                if not (place / "latest_universal").exists():
                    found[name] = "not converted"
                    continue
                engine = _engine(stage, optimizer, world, universal=True)
                engine.load_checkpoint(str(place), tag="universal")
            found[name] = _losses(engine, range(STEPS, 2 * STEPS), rank, world)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    if rank == 0:
        (work / f"{what}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _on_rank(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
