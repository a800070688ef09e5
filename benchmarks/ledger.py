"""What the ledger costs a training step, and what `data.verify=first_use` costs a rank.

One run trains; every other step keeps no ledger, so both kinds meet the same load. The steps are
compared in pairs of neighbors, by CPU seconds. The share of a step that is spent inside the
ledger's calls is printed too. Digests are summed over the ranks and written when a loss is
logged, of at least 8 steps at once. Then 16 shards are read to the end with and without
`data.verify`, and audited.

    python benchmarks/ledger.py                             # one rank
    torchrun --nproc_per_node 2 benchmarks/ledger.py        # two
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# The repository instead of this folder, as in kernels.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.data_read import SHARDS, WINDOW, _stream, _write
from benchmarks.record import circumstances, paired_ratio, report

MODEL = (
    "model.preset=tiny model.hidden_size=128 model.num_hidden_layers=2 model.num_attention_heads=4 "
    "model.num_key_value_heads=4 model.intermediate_size=384 data.tokenizer=train:2000 "
    "data.val_fraction=0.1 data.min_val_tokens=500 data.workers=1 train.sequence_length=256 "
    "train.global_batch_tokens=2048 train.per_device_train_batch_size=4 "
    "train.save_steps=100000 train.eval_steps=100000 train.max_eval_tokens=1000 "
    "train.weight_check_steps=0 train.supervise=off observe.swanlab.mode=disabled "
    "observe.sample_prompts=[]"
)


def main() -> None:
    args = _arguments()
    rank = int(os.environ.get("RANK", "0"))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    place = Path(tempfile.gettempdir()) / f"ledger-{os.environ.get('MASTER_PORT', os.getpid())}"
    place.mkdir(exist_ok=True)
    found = _train(place, args.steps, args.logging_steps)
    if rank:
        return
    on = [step for step in found["steps"] if step["ledger"]]
    off = [step for step in found["steps"] if not step["ledger"]]
    ratio = paired_ratio([one["cpu"] for one in on], [one["cpu"] for one in off])
    share = sum(one["inside"] for one in on) / sum(one["cpu"] for one in on)
    facts: dict[str, Any] = {"circumstances": circumstances(), "ranks": ranks, "ratio": ratio}
    facts |= {"share": share, "steps": found["steps"]}
    rows = [
        ["ranks, pairs of steps", f"{ranks}, {len(on)}"],
        ["train.logging_steps", str(args.logging_steps)],
        ["a step, CPU ms", f"{1e3 * statistics.median(one['cpu'] for one in off):.1f}"],
        ["with the ledger / without, median of the pairs", f"{ratio['median']:.4f}"],
        ["inside the ledger's calls, share of the steps", f"{share:.4%}"],
        ["the same, CPU us per step", f"{1e6 * statistics.mean(one['inside'] for one in on):.0f}"],
    ]
    if ranks == 1:
        facts["verify"] = verified = _verify(args.tokens)
        rows += [
            ["hashing a batch for the ledger, ns per token", f"{verified['digest_ns']:.2f}"],
            ["sha256 of a shard, GB/s", f"{verified['sha256_gbps']:.2f}"],
            ["reading all shards into batches, s", f"{verified['off']:.2f}"],
            ["the same with data.verify=first_use, s", f"{verified['first_use']:.2f}"],
            ["audit, samples of 1,024 tokens/s", f"{verified['audit']:,.0f}"],
        ]
    report("The ledger and data.verify, CPU time", facts, ["", ""], rows, args.out)


def _train(place: Path, steps: int, logging_steps: int) -> dict[str, Any]:
    """Train, every other step without the ledger. CPU seconds of each step after the first four."""
    from wikillm.config.load import load
    from wikillm.train.run import pretrain
    from wikillm.train.step_ledger import StepLedger

    source = place / "corpus.jsonl"
    if os.environ.get("RANK", "0") == "0" and not source.exists():
        _write_corpus(source)
    while not source.exists():
        time.sleep(0.1)
    marks: list[dict[str, Any]] = []
    real = {name: getattr(StepLedger, name) for name in ("begin_step", "add_batch", "log")}

    def begin_step(self: StepLedger, step: int, *args: Any) -> None:
        marks.append({"ledger": step % 2 == 0, "at": time.process_time(), "inside": 0.0})
        timed("begin_step", self, step, *args)

    def timed(name: str, self: StepLedger, *args: Any, **options: Any) -> None:
        if marks and not marks[-1]["ledger"]:
            return
        start = time.process_time()
        real[name](self, *args, **options)
        if marks:
            marks[-1]["inside"] += time.process_time() - start

    StepLedger.begin_step = begin_step  # type: ignore[method-assign]
    for name in ("add_batch", "log"):
        setattr(StepLedger, name, lambda self, *a, _n=name, **o: timed(_n, self, *a, **o))
    words = [*MODEL.split(), f"train.max_steps={steps + 5}", f"train.logging_steps={logging_steps}"]
    words += [f"data.path={source}"]
    words += [f"data.store={place / 'store'}", f"run.dir={place / 'run'}"]
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain(load(None, words, None))
    pairs = zip(marks[4:], marks[5:], strict=False)
    return {"steps": [{**one, "cpu": after["at"] - one["at"]} for one, after in pairs]}


def _write_corpus(path: Path) -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 7))) for _ in range(3000)]
    with open(path.with_suffix(".part"), "w", encoding="utf-8") as file:
        for _ in range(6000):
            file.write(json.dumps({"text": " ".join(chance.choices(words, k=200))}) + "\n")
    path.with_suffix(".part").rename(path)


def _verify(tokens: int) -> dict[str, float]:
    """Read shards of random ids with and without verification; audit the same samples."""
    import hashlib

    import numpy as np

    from wikillm.data.order.blocks import SampleOrder, window_ends
    from wikillm.data.read.rows import sample_rows
    from wikillm.data.store.store import shard_path
    from wikillm.ledger.audit import expected_digests
    from wikillm.ledger.digest import row_hashes
    from wikillm.ledger.record import StepLine

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), tokens)
        args = argparse.Namespace(work=Path(folder), tokens=tokens, length=1024)
        ends = window_ends([tokens] * SHARDS, WINDOW)
        digests = []
        start = time.process_time()
        for number in range(SHARDS):
            content = np.memmap(shard_path(args.work, "train", number, "tok"), mode="r")
            digests.append(hashlib.sha256(content.data).hexdigest())
        found["sha256_gbps"] = SHARDS * tokens * 4 / (time.process_time() - start) / 1e9
        for kind in ("off", "off", "first_use"):
            stream, _ = _stream(args)
            stream._digests = [{"tok": digest, "idx": ""} for digest in digests]
            if kind == "first_use":
                stream.verify_on_first_use()
            order = SampleOrder(stream.n_tokens, 1024, 1, windows=ends)
            count = order.blocks_of_first_epoch
            start = time.process_time()
            for first in range(0, count, 64):
                rows = sample_rows(stream, order, np.arange(first, min(first + 64, count)))
            found[kind] = time.process_time() - start
        steps = [StepLine(n // 64, n, min(n + 64, count), 0) for n in range(0, count, 64)]
        start = time.process_time()
        expected_digests(stream, order, steps)
        found["audit"] = count / (time.process_time() - start)
        start = time.process_time()
        for _ in range(1000):
            row_hashes(rows[0], rows[1])
        found["digest_ns"] = (time.process_time() - start) / rows[0].size / 1000 * 1e9
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="that are compared, an even number")
    parser.add_argument("--logging-steps", type=int, default=10, help="train.logging_steps")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="in each of 16 shards")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
