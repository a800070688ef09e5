"""Do Muon, WSD and best-fit packing help? Small runs at equal tokens, over seeds.

Arms that have a learning rate of their own get the same number of trial runs for it (one seed, full
length; Muon's AdamW share keeps the first value of AdamW's list); the best value is then run with
seeds the trials did not use. An arm "helps" or "hurts" when every seed's difference from the
baseline has the same sign and the mean difference is more than twice its standard error; otherwise
it is "unclear". What holds for a model of this size need not hold for a larger one. Each run is a
fresh process with one thread.

    # About 10 minutes of one core.
    python benchmarks/recipes.py --data zhwiki.jsonl
    python benchmarks/recipes.py --data zhwiki.jsonl --tokens 100000 --seeds 2 --arms muon
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

from benchmarks.record import circumstances, report

TUNING_SEED = 1
ADAMW_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
MUON_RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)


@dataclass(frozen=True)
class Arm:
    """`rates` are tried for `key`; without them the arm takes the baseline's best learning rate."""

    name: str
    words: tuple[str, ...]
    key: str = "train.learning_rate"
    rates: tuple[float, ...] = ()


BASELINE = Arm("AdamW, cosine", (), rates=ADAMW_RATES)
_MUON = ("train.optimizer=muon", "train.max_grad_norm=0", "train.learning_rate=4e-3")
_WSD = (
    "train.lr_scheduler_type=warmup_stable_decay",
    "train.lr_decay_share=0.2",
    "train.lr_decay_type=1-sqrt",
)
ARMS = {
    "muon": Arm("Muon, cosine", _MUON, "train.muon_learning_rate", MUON_RATES),
    "wsd": Arm("AdamW, WSD 20 % 1-sqrt", _WSD, rates=ADAMW_RATES),
    "best-fit": Arm("AdamW, cosine, best-fit packing", ("data.packing=best_fit",)),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a text that data.path takes")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--tokens", type=int, default=500_000, help="training tokens of every run")
    parser.add_argument("--seeds", type=int, default=3, help="runs per arm at its best rate")
    parser.add_argument(
        "--rates", type=int, default=4, help="trial runs per arm that has rates, at most 4"
    )
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser.parse_args()


def shape_words(args: argparse.Namespace) -> list[str]:
    """The run that all arms share: 16 sequences of 128 tokens a step, 5 % warm-up, decay 0.1."""
    batch, heads = 2048, max(1, args.hidden // 32)
    return [
        "--max_tokens", str(args.tokens), "model.preset=tiny", f"model.hidden_size={args.hidden}",
        f"model.num_hidden_layers={args.layers}", f"model.num_attention_heads={heads}",
        f"model.num_key_value_heads={heads}", f"model.intermediate_size={3 * args.hidden}",
        f"data.path={args.data}", f"data.tokenizer=train:{args.vocab}", "data.val_fraction=0.1",
        "data.min_val_tokens=2000", "data.workers=1", "train.sequence_length=128",
        "train.per_device_train_batch_size=16", f"train.global_batch_tokens={batch}",
        "train.warmup_steps=0.05",
        "train.max_eval_tokens=50000", "train.logging_steps=20", "train.save_steps=100000",
        "observe.swanlab.mode=disabled", "observe.sample_prompts=[]",
    ]  # fmt: skip


def train(words: list[str], log: Path) -> None:
    """One run, in its own process."""
    import contextlib

    import torch

    from wikillm.config.load import load
    from wikillm.core.errors import DivergedError
    from wikillm.train.run import pretrain

    torch.set_num_threads(1)
    with (
        open(log, "w", encoding="utf-8") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        try:
            pretrain(load("demo", words))
        except DivergedError:
            sys.exit(5)


def run(folder: Path, args: argparse.Namespace, words: list[str], seed: int) -> float:
    """Held-out loss in nats per token at the end; infinite when the run diverged."""
    number = len(list(folder.glob("run-*.log")))
    place = folder / f"run-{number}"
    every = [
        *shape_words(args),
        *words,
        f"run.seed={seed}",
        f"run.dir={place}",
        f"data.store={folder / 'store'}",
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wikillm.train.run"])
    process = context.Process(target=train, args=(every, folder / f"run-{number}.log"))
    process.start()
    process.join()
    if process.exitcode == 5:
        return float("inf")
    if process.exitcode != 0:
        raise SystemExit(
            f"a run ended with {process.exitcode}:\n"
            f"{(folder / f'run-{number}.log').read_text()[-2000:]}"
        )
    events = [
        json.loads(line)
        for line in (place / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    loss = float([event["eval_loss"] for event in events if event["kind"] == "eval"][-1])
    print(f"  {loss:.4f}  seed {seed}  {' '.join(words)}", file=sys.stderr, flush=True)
    return loss


def tune(folder: Path, args: argparse.Namespace, arm: Arm) -> dict[float, float]:
    """Rate -> held-out loss, with the tuning seed."""
    return {
        rate: run(folder, args, [*arm.words, f"{arm.key}={rate:g}"], TUNING_SEED)
        for rate in arm.rates[: args.rates]
    }


def verdict(differences: list[float]) -> str:
    """From the differences arm - baseline, seed by seed; negative is better."""
    if len(differences) < 2:
        return "unclear"
    mean, error = (
        statistics.mean(differences),
        statistics.stdev(differences) / len(differences) ** 0.5,
    )
    one_sign = all(d < 0 for d in differences) or all(d > 0 for d in differences)
    if not one_sign or abs(mean) <= 2 * error:
        return "unclear"
    return "helps" if mean < 0 else "hurts"


def main() -> None:
    args, start = arguments(), time.time()
    facts: dict[str, Any] = {
        "circumstances": circumstances(),
        "settings": {k: str(v) for k, v in vars(args).items()},
    }
    seeds = [TUNING_SEED + 1 + n for n in range(args.seeds)]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arm in [BASELINE, *(ARMS[key] for key in args.arms)]:
            trials = tune(folder, args, arm)
            rate = min(trials, key=lambda r: trials[r]) if trials else found[0]["rate"]
            losses = [
                run(folder, args, [*arm.words, f"{arm.key}={rate:g}"], seed) for seed in seeds
            ]
            found.append({"arm": arm.name, "rate": rate, "trials": trials, "losses": losses})
    facts |= {"arms": found, "seconds": time.time() - start}
    rows, base = [], found[0]["losses"]
    for row in found:
        differences = [a - b for a, b in zip(row["losses"], base, strict=True)]
        row["differences"] = differences
        row["verdict"] = "baseline" if row is found[0] else verdict(differences)
        spread = statistics.stdev(row["losses"]) if len(seeds) > 1 else float("nan")
        trials = (
            ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in row["trials"].items())
            or "the baseline's"
        )
        against = "" if row is found[0] else " ".join(f"{d:+.4f}" for d in differences)
        mean = f"{statistics.mean(row['losses']):.4f}"
        cells = [row["arm"], trials, f"{row['rate']:g}", mean, f"{spread:.4f}", against]
        rows.append([*cells, row["verdict"]])
    header = (
        "arm",
        f"trials (seed {TUNING_SEED})",
        "rate",
        "held-out loss",
        "seed std",
        "by seed, - baseline",
        "verdict",
    )
    report(
        f"Recipes: {args.tokens:,} tokens, {args.seeds} seeds, nats per token",
        facts,
        header,
        rows,
        args.out,
    )


if __name__ == "__main__":
    main()
