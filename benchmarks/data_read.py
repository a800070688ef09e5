"""Reading a token store into batches, against Hugging Face `datasets` on the same tokens.

Both read shuffled samples of T tokens into int64 batches, warm, in one process and one thread.
`datasets` holds what the tutorial makes of the corpus, rows of T ids in Arrow files, read by a
DataLoader with shuffle. Also: one sample found and read at random, the first batch of a freshly
opened store, and the place of samples beyond 10^9 among 100,000 windows. Then the same store packed
best-fit: the padding, what packing costs, and reading. Documents have random lengths.

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
MEDIAN_LENGTH = 6.0  # of the documents, as a logarithm: 403 tokens, 739 on average
WINDOWS, SHARD_TOKENS, SAMPLE = (
    100_000,
    18_000_000,
    10**9,
)  # a store of 14 T tokens, for places only


def main() -> None:
    args = _arguments()
    if args.one:
        print(json.dumps(MEASURES[args.one](args)))
        return
    sizes = ["--tokens", str(args.tokens), "--batch", str(args.batch), "--length", str(args.length)]
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), args.tokens)
        found = {
            name: run_in_fresh_process(["--one", name, "--work", folder, *sizes])
            for name in MEASURES
        }
    facts = {"circumstances": circumstances(), "contenders": found}
    rate = {name: one["tokens_per_cpu_s"] for name, one in found.items()}
    ours, packed = found["wikillm"], found["best_fit"]
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
        ["best-fit: M tokens/s per CPU second", f"{packed['tokens_per_cpu_s'] / 1e6:.2f}"],
        ["best-fit: padding", f"{packed['padding']:.3%}"],
        [f"best-fit: packing {packed['documents']:,} documents, ms", f"{packed['packing_ms']:.0f}"],
        ["best-fit: packing a window of 1,000,000 documents, s", f"{packed['million_s']:.2f}"],
        ["best-fit: packed store to first batch, ms", f"{packed['first_batch_ms']:.1f}"],
    ]
    title = f"Samples of {args.length} tokens into batches of {args.batch}, one process"
    report(title, facts, ["", ""], rows, args.out)


def _write(folder: Path, tokens: int) -> None:
    import numpy as np

    from wikillm.data.store.store import INDEX, shard_path

    (folder / "train").mkdir()
    for shard in range(SHARDS):
        random = np.random.default_rng(shard)
        random.integers(0, 151_646, tokens, dtype=np.uint32).tofile(
            shard_path(folder, "train", shard, "tok")
        )
        lengths = random.lognormal(MEDIAN_LENGTH, 1.1, tokens // 400).astype(np.int64) + 2
        ends = np.cumsum(lengths)
        index = np.zeros(int((ends < tokens).sum()) + 1, dtype=INDEX)
        index["end"] = [*ends[ends < tokens], tokens]
        index.tofile(shard_path(folder, "train", shard, "idx"))


def _stream(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    from wikillm.data.funnel import Funnel
    from wikillm.data.sources.read import Cursor
    from wikillm.data.store.manifest import ShardInfo, ShardSplit
    from wikillm.data.store.store import INDEX, TokenStream, shard_path

    documents = [
        shard_path(args.work, "train", n, "idx").stat().st_size // INDEX.itemsize
        for n in range(SHARDS)
    ]
    splits = [
        ShardSplit(args.tokens, count, 4 * args.tokens, "", str(n))
        for n, count in enumerate(documents)
    ]
    shards = [
        ShardInfo(n, Cursor(), Cursor(), False, Funnel(), {"train": split})
        for n, split in enumerate(splits)
    ]
    return TokenStream(args.work, "train", shards), shards


def _wikillm(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    import wikillm.data.read.loader  # noqa: F401 torch is there in a run: its import is not the data's
    from wikillm.data.order.blocks import SampleOrder, window_ends

    _stream(args)  # imports
    start = time.perf_counter()
    tokens, _ = _stream(args)
    order = SampleOrder(
        tokens.n_tokens, args.length, 1, windows=window_ends([args.tokens] * SHARDS, WINDOW)
    )
    next(_batches(tokens, order, args))
    first = time.perf_counter() - start
    found = _rate(lambda: _batches(tokens, order, args), args)
    seeks = []
    for sample in np.random.default_rng(0).integers(0, order.blocks_of_first_epoch, 500).tolist():
        start = time.perf_counter()
        ((begin, stop), *_) = order.target_ranges([sample])[0]
        tokens.read(begin, stop + 1).astype(np.int64)
        seeks.append(time.perf_counter() - start)
    ends = tuple(
        range(WINDOW * SHARD_TOKENS, (WINDOWS + 1) * WINDOW * SHARD_TOKENS, WINDOW * SHARD_TOKENS)
    )
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
        "order_bytes": large._targets.nbytes
        + large._samples.nbytes
        + sys.getsizeof(ends)
        + 32 * len(ends),
    }


def _best_fit(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    import wikillm.data.read.loader  # noqa: F401 as above
    from wikillm.data.order.packing import PackedOrder, PackedWindow
    from wikillm.data.read.packed import packed_order

    def order_of(tokens: Any, shards: list[Any]) -> PackedOrder:
        return packed_order(args.work, tokens, shards, WINDOW, args.length, 1)

    start = time.perf_counter()
    order_of(*_stream(args))
    packing = time.perf_counter() - start
    start = time.perf_counter()
    tokens, shards = _stream(args)
    order = order_of(tokens, shards)
    next(_batches(tokens, order, args))
    first = time.perf_counter() - start
    many = np.cumsum(
        np.random.default_rng(0).lognormal(MEDIAN_LENGTH, 1.1, 10**6).astype(np.int64) + 2
    )
    start = time.perf_counter()
    PackedWindow.of(many, True, args.length)
    million = time.perf_counter() - start
    return _rate(lambda: _batches(tokens, order, args), args) | {
        "packing_ms": 1e3 * packing,
        "million_s": million,
        "first_batch_ms": 1e3 * first,
        "documents": len(tokens.document_ends()),
        "padding": 1 - (tokens.n_tokens - 1) / (order.blocks_per_epoch * args.length),
    }


def _batches(tokens: Any, order: Any, args: argparse.Namespace) -> Iterator[Any]:
    from wikillm.data.read.loader import BatchShape, train_loader

    total = order.blocks_of_first_epoch // args.batch
    return iter(train_loader(tokens, order, BatchShape(args.batch, 1, 1, 0), total_steps=total))


def _datasets(args: argparse.Namespace) -> dict[str, Any]:
    import datasets
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    (tokens, _), target = _stream(args), args.work / "arrow"

    def rows() -> Iterator[dict[str, Any]]:
        for start in range(0, tokens.n_tokens - args.length, args.length):
            yield {"input_ids": tokens.read(start, start + args.length).astype(np.int32)}

    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    made = datasets.Dataset.from_generator(
        rows, features=features, cache_dir=str(target)
    ).with_format("torch")

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


MEASURES = {"datasets": _datasets, "wikillm": _wikillm, "best_fit": _best_fit}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=int, default=1_000_000, help="per shard, of 16 (default 1,000,000)"
    )
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch (default 8)")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence (default 512)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", choices=tuple(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
