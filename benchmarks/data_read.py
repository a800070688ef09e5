"""Reading a token store into batches, against Hugging Face `datasets` on the same tokens in the same run.

Both read shuffled samples of T tokens into int64 batches, warm, in one process and one thread. `datasets` holds what the
tutorial makes of the corpus, rows of T ids in Arrow files, read by a DataLoader with shuffle. Also: one sample found and
read at random, the first batch of a freshly opened store, and the place of samples beyond 10^9 among 100,000 windows.

    python benchmarks/data_read.py              # 16 shards of 1M random ids
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
# The repository instead of this folder, as in kernels.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.record import circumstances, report, run_in_fresh_process

SHARDS, WINDOW = 16, 8
WINDOWS, SHARD_TOKENS, SAMPLE = 100_000, 18_000_000, 10**9  # a store of 14 T tokens, for places only


def main() -> None:
    args = _arguments()
    if args.one:
        measure: Callable[[argparse.Namespace], dict[str, Any]] = {"datasets": _datasets, "wikillm": _wikillm}[args.one]
        print(json.dumps(measure(args)))
        return
    sizes = ["--tokens", str(args.tokens), "--batch", str(args.batch), "--length", str(args.length)]
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), args.tokens)
        found = {
            name: run_in_fresh_process(["--one", name, "--work", folder, *sizes]) for name in ("datasets", "wikillm")
        }
    facts = {"circumstances": circumstances(), "contenders": found}
    rate = {name: one["tokens_per_cpu_s"] for name, one in found.items()}
    ours = found["wikillm"]
    rows = [
        ["M tokens/s per CPU second, datasets", f"{rate['datasets'] / 1e6:.2f}"],
        ["M tokens/s per CPU second, WikiLLM", f"{rate['wikillm'] / 1e6:.2f}"],
        ["ratio", f"{rate['wikillm'] / rate['datasets']:.1f}"],
        ["one sample found and read at random, ms", f"{ours['seek_ms']:.3f}"],
        ["store object to first batch, ms", f"{ours['first_batch_ms']:.1f}"],
        [f"order of {WINDOWS:,} windows made, ms", f"{ours['order_ms']:.1f}"],
        [
            "place of a sample beyond 10^9 in it, first / later, ms",
            f"{ours['place_ms'][0]:.2f} / {ours['place_ms'][1]:.3f}",
        ],
        ["memory of that order, MiB", f"{ours['order_bytes'] / 2**20:.1f}"],
    ]
    title = f"Samples of {args.length} tokens into batches of {args.batch}, one process"
    report(title, facts, ["", ""], rows, args.out)


def _write(folder: Path, tokens: int) -> None:
    import numpy as np

    (folder / "train").mkdir()
    for shard in range(SHARDS):
        ids = np.random.default_rng(shard).integers(0, 151_646, tokens, dtype=np.uint32)
        ids.tofile(folder / "train" / f"{shard:05d}.tok")


def _stream(args: argparse.Namespace) -> Any:
    from wikillm.data.funnel import Funnel
    from wikillm.data.manifest import ShardInfo, ShardSplit
    from wikillm.data.sources.read import Cursor
    from wikillm.data.store import TokenStream

    part = ShardSplit(args.tokens, 1, 4 * args.tokens, "", "")
    shards = [ShardInfo(n, Cursor(), Cursor(), False, Funnel(), {"train": part}) for n in range(SHARDS)]
    return TokenStream(args.work, "train", shards)


def _wikillm(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from wikillm.data.loader import BatchShape, train_loader
    from wikillm.data.order import SampleOrder, window_ends

    def loader(tokens: Any, order: SampleOrder) -> Iterator[Any]:
        shape = BatchShape(args.batch, 1, 1, 0)
        return iter(train_loader(tokens, order, shape, total_steps=order.blocks_of_first_epoch // args.batch))

    start = time.perf_counter()
    tokens = _stream(args)
    order = SampleOrder(tokens.n_tokens, args.length, 1, windows=window_ends([args.tokens] * SHARDS, WINDOW))
    next(loader(tokens, order))
    first = time.perf_counter() - start
    found = _rate(lambda: loader(tokens, order), args)
    seeks = []
    for sample in np.random.default_rng(0).integers(0, order.blocks_of_first_epoch, 500).tolist():
        start = time.perf_counter()
        ((begin, stop), *_) = order.pieces([sample])[0]
        tokens.read(begin, stop + 1).astype(np.int64)
        seeks.append(time.perf_counter() - start)
    ends = tuple(range(WINDOW * SHARD_TOKENS, (WINDOWS + 1) * WINDOW * SHARD_TOKENS, WINDOW * SHARD_TOKENS))
    start = time.perf_counter()
    large = SampleOrder(ends[-1], args.length, 1, windows=ends)
    made = time.perf_counter() - start
    places = []
    for sample in range(SAMPLE, SAMPLE + 10**7 * 20, 10**7):
        start = time.perf_counter()
        large.locate([sample])
        places.append(time.perf_counter() - start)
    return found | {
        "first_batch_ms": 1e3 * first,
        "seek_ms": 1e3 * statistics.median(seeks),
        "order_ms": 1e3 * made,
        "place_ms": [1e3 * places[0], 1e3 * statistics.median(places[1:])],
        "order_bytes": large._targets.nbytes + large._samples.nbytes + sys.getsizeof(ends) + 32 * len(ends),
    }


def _datasets(args: argparse.Namespace) -> dict[str, Any]:
    import datasets
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    tokens, target = _stream(args), args.work / "arrow"

    def rows() -> Iterator[dict[str, Any]]:
        for start in range(0, tokens.n_tokens - args.length, args.length):
            yield {"input_ids": tokens.read(start, start + args.length).astype(np.int32)}

    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(target)).with_format("torch")

    def loader() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1)
        return iter(DataLoader(made, batch_size=args.batch, shuffle=True, generator=generator))

    return _rate(loader, args)


def _rate(loader: Callable[[], Iterator[Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second over two seconds of batches, after one that warms up."""
    found: dict[str, Any] = {}
    for seconds in (1.0, 2.0):
        batches, count = loader(), 0
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            batch = next(batches, None)
            if batch is None:
                batches = loader()
                continue
            count += batch["input_ids"].numel()
        found = {
            "tokens_per_cpu_s": count / (time.process_time() - cpu),
            "tokens_per_s": count / (time.perf_counter() - wall),
        }
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="per shard, of 16 (default 1,000,000)")
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch (default 8)")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence (default 512)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", choices=("datasets", "wikillm"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
