"""Writing and reading a sharded training state: WikiLLM's files, and torch.distributed.checkpoint.

    python benchmarks/checkpoint_formats.py --parameters 123 --repeats 5

Two gloo ranks hold the weights and AdamW's moments of a model as ZeRO-1 divides them: flat ranges
whose border cuts a tensor. Each way writes them to the disk, and one rank reads all of it back:

    ours           whole tensors in safetensors, each rank its ranges; digests, fsync
    dcp            torch.distributed.checkpoint, FileSystemWriter: metadata is a pickle
    dcp-hf         its HuggingFaceStorageWriter, one file per rank

Both of torch's need each range as a shard of a one-dimensional tensor, so their files do not open
as the model's weights; neither keeps digests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RANKS = 2
WAYS = ("ours", "dcp", "dcp-hf")


def specs_of(millions: int) -> list[Any]:
    """Tensors of a model with `millions` of parameters: an embedding, and layers of matrices."""
    from wikillm.checkpoints.tensor_layout import TensorSpec

    shapes = {"embed": (64_000, 512)}
    left = millions * 1_000_000 - 64_000 * 512
    for number in range(max(1, left // (512 * 1408))):
        shapes[f"layers.{number}.weight"] = (512, 1408)
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    return [TensorSpec(kind, name, shape) for kind in kinds for name, shape in shapes.items()]


def share_of(specs: list[Any], rank: int) -> list[tuple[Any, int, int]]:
    """(tensor, first, stop): of each kind a rank has one half, which begins in the middle."""
    found = []
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        members = [spec for spec in specs if spec.kind == kind]
        total = sum(spec.numel for spec in members)
        first = total * rank // RANKS
        last = total * (rank + 1) // RANKS
        before = 0
        for spec in members:
            start = max(0, first - before)
            stop = min(spec.numel, last - before)
            if start < stop:
                found.append((spec, start, stop))
            before += spec.numel
    return found


def write_ours(folder: Path, specs: list[Any], parts: list[Any], rank: int) -> None:
    import torch.distributed as dist

    from wikillm.checkpoints.tensor_digests import digests_to_json, rank_file
    from wikillm.checkpoints.tensor_files import create_files, write_part
    from wikillm.checkpoints.tensor_layout import lay_out

    layout = lay_out(specs)
    if rank == 0:
        (folder / "ranks").mkdir(parents=True)
        create_files(folder, layout)
    dist.barrier()
    placed = sorted(
        (
            (layout.extent(spec, start, start + len(values)), values)
            for spec, start, values in parts
        ),
        key=lambda each: each[0],
    )
    import torch

    data = torch.cat([values for _, values in placed]).numpy().data.cast("B")
    digests = write_part(folder, layout, [extent for extent, _ in placed], data)
    record = digests_to_json([file.name for file in layout.files], digests)
    (folder / rank_file(rank)).write_text(json.dumps(record))
    dist.barrier()


def read_ours(folder: Path, specs: list[Any]) -> None:
    from wikillm.checkpoints.tensor_files import open_tensors

    with open_tensors(folder) as reader:
        for spec in specs:
            reader.read(spec, 0, spec.numel)


def sharded(specs: list[Any], parts: list[Any], rank: int) -> dict[str, Any]:
    """The state as torch's one-dimensional sharded tensors."""
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
    from torch.distributed._shard.sharding_spec import ShardMetadata

    mine: dict[str, list[Shard]] = {}
    for spec, start, values in parts:
        where = ShardMetadata([start], [len(values)], f"rank:{rank}/cpu")
        mine[f"{spec.kind}.{spec.name}"] = [Shard(values, where)]
    names = {f"{spec.kind}.{spec.name}": spec.numel for spec in specs}
    return {name: init_from_local_shards(mine.get(name, []), n) for name, n in names.items()}


def write_dcp(folder: Path, state: dict[str, Any], way: str) -> None:
    import torch.distributed.checkpoint as dcp

    if way == "dcp":
        writer: Any = dcp.FileSystemWriter(folder)
    else:
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(state, storage_writer=writer)


def read_dcp(folder: Path, specs: list[Any], way: str) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    if way == "dcp":
        reader: Any = dcp.FileSystemReader(folder)
    else:
        reader = dcp.HuggingFaceStorageReader(str(folder))
    whole = {f"{spec.kind}.{spec.name}": torch.empty(spec.numel) for spec in specs}
    dcp.load(whole, storage_reader=reader, no_dist=True)


def rank_main(order: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    specs = specs_of(order["millions"])
    parts = [
        (spec, start, torch.randn(stop - start)) for spec, start, stop in share_of(specs, rank)
    ]
    state = sharded(specs, parts, rank)
    found: dict[str, dict[str, list[float]]] = {way: {"write": [], "read": []} for way in WAYS}
    for turn in range(order["repeats"]):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            folder = Path(order["folder"]) / way
            dist.barrier()

            def write(folder: Path = folder, way: str = way) -> None:
                if way == "ours":
                    write_ours(folder, specs, parts, rank)
                else:
                    write_dcp(folder, state, way)

            def read(folder: Path = folder, way: str = way) -> None:
                if rank == 0:
                    read_ours(folder, specs) if way == "ours" else read_dcp(folder, specs, way)
                dist.barrier()

            found[way]["write"].append(timed(write))
            found[way]["read"].append(timed(read))
            if rank == 0:
                shutil.rmtree(folder)
    if rank == 0:
        Path(order["result"]).write_text(json.dumps(found))


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--parameters", type=int, default=123, help="millions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    args = parser.parse_args()
    if args.rank is not None:
        rank_main(args.rank)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as place, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        result = Path(place) / "result.json"
        order = {"millions": args.parameters, "repeats": args.repeats, "folder": place}
        command = [sys.executable, "-m", "benchmarks.checkpoint_formats", "--rank"]
        command.append(json.dumps({**order, "result": str(result)}))
        processes = []
        for rank in range(RANKS):
            environ = os.environ | {
                "RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            processes.append(subprocess.Popen(command, env=environ, cwd=REPO))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("a rank failed")
        found = json.loads(result.read_text())
    print("| | write s | read by one rank s |\n|---|---|---|")
    for way, times in found.items():
        cells = [
            f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            for values in (times["write"], times["read"])
        ]
        print(f"| {way} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
