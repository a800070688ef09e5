"""How many of the tutorial's tokens, and how much of its CPU time, does a recipe need for its loss?

The baseline is the tutorial's own way: Hugging Face's Trainer, AdamW at 5e-4 with weight decay 0.1,
cosine, 2 % of the steps as warm-up, two epochs over chunks of 512 tokens with the tail of every
document dropped. Its batch is 1/12 of the tutorial's, so that a small text still gives hundreds of
steps. The recipe trains the same model on the same text with the same tokenizer, for a share of the
baseline's tokens. Both are judged by bits per byte on documents that neither has read.

    # The table of docs/measurements/: hours, on two quiet cores.
    python benchmarks/speedrun.py --data zh.jsonl --sizes 1m 5m 20m --seeds 3 --shares 0.5 0.6
    # One more setting over the recipe, against the recipe as it is: minutes.
    python benchmarks/speedrun.py --data zh.jsonl --sizes 1m --try train.ema_decay=0.99
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

from benchmarks.record import circumstances, report
from wikillm.config.size_laws import RATE_BESIDE_MUON, final_norm_init

CHUNK = 512
"""Tokens per sequence, of the baseline and of the evaluation."""
BATCH = 16
"""Sequences per step of the baseline; the tutorial's are 24 x 8."""


@dataclass(frozen=True)
class Size:
    """A model in Qwen2's shape with tied embeddings, and the text that the baseline reads twice."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocab: int
    tokens: int

    def words(self) -> list[str]:
        return [
            f"model.hidden_size={self.hidden}", f"model.num_hidden_layers={self.layers}",
            f"model.num_attention_heads={self.heads}",
            f"model.num_key_value_heads={max(1, self.heads // 2)}",
            f"model.intermediate_size={self.feed_forward}",
        ]  # fmt: skip


SIZES = {
    "1m": Size(128, 3, 4, 320, 4096, 1_500_000),
    "5m": Size(256, 5, 4, 768, 4096, 3_000_000),
    "20m": Size(512, 6, 8, 1408, 8192, 2_000_000),
}
"""By parameters; `tokens` is what the baseline trains on, in two epochs."""


def size_of(name: str) -> Size:
    """One of SIZES, or a shape: `256x3` is 256 wide with 3 layers, `256x3v8192` has 8,192 tokens.

    A shape has 1.5M tokens, heads of 32 (64 from a width of 512 on), and 2.5 times its width in
    the feed-forward part, so that `128x3` is `1m`.
    """
    if name in SIZES:
        return SIZES[name]
    found = re.fullmatch(r"(\d+)x(\d+)(?:v(\d+))?", name)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name} is neither {', '.join(SIZES)} nor WIDTHxLAYERS")
    width, layers, vocab = (int(part or 4096) for part in found.groups())
    heads = width // (64 if width >= 512 else 32)
    return Size(width, layers, heads, width * 5 // 2, vocab, 1_500_000)


RECIPE = (
    "train.optimizer=muon", "train.max_grad_norm=0", "train.lr_scheduler_type=warmup_stable_decay",
    "train.lr_decay_share=0.5", "train.lr_decay_type=linear", "train.warmup_steps=0.02",
    "train.muon_learning_rate=0.01", "train.weight_decay=0.1", "train.sequence_length=512",
    "train.global_batch_tokens=2048", f"train.learning_rate={RATE_BESIDE_MUON}",
)  # fmt: skip
"""The best of a search at 1M parameters (docs/measurements/2026-11-28-speedrun.md). The initial
weight of the last norm follows from the width, as in `model.depth`."""


def checked_size(name: str) -> str:
    size_of(name)
    return name


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with a key text")
    sizes = f"{', '.join(SIZES)}, or a shape such as 256x3 or 256x3v8192 (vocabulary)"
    parser.add_argument("--sizes", nargs="+", type=checked_size, default=["1m"], help=sizes)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5], help="of the tokens")
    parser.add_argument("--seeds", type=int, default=1)
    fewer = "seeds of the baseline, which takes most of the time, or 0; default: --seeds"
    parser.add_argument("--baseline-seeds", type=int, help=fewer)
    rate = "a rate for the baseline instead of the tutorial's 5e-4: AdamW at its best"
    parser.add_argument("--rate", type=float, help=rate)
    parser.add_argument("--try", nargs="+", dest="tried", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, help="keep text, stores and finished runs here")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.child and not args.data.is_file():
        parser.error(f"--data {args.data}: no such file")
    return args


def split(data: Path, folder: Path) -> None:
    """`train.jsonl` and `held-out.jsonl`: one document in 50, by the hash of its text."""
    with (
        open(data, encoding="utf-8") as lines,
        open(folder / "train.jsonl", "w", encoding="utf-8") as train,
        open(folder / "held-out.jsonl", "w", encoding="utf-8") as held_out,
    ):
        for line in lines:
            text = json.loads(line)["text"]
            digest = hashlib.sha256(text.encode()).digest()
            target = held_out if digest[0] < 5 else train
            target.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def recipe_words(folder: Path, size: Size, more: list[str]) -> list[str]:
    """The command line of the recipe, without its horizon."""
    return [
        "model.preset=tiny", *size.words(), f"data.path={folder / 'train.jsonl'}",
        f"data.store={folder / f'store-{size.vocab}'}", f"data.tokenizer=train:{size.vocab}",
        "data.val_fraction=0.001", "data.min_val_tokens=1000", "train.max_eval_tokens=1000",
        "train.per_device_train_batch_size=auto", "train.max_micro_batch_tokens=8192",
        "train.logging_steps=20", "train.save_steps=1000000", "train.save_total_limit=1",
        "observe.swanlab.mode=disabled", "observe.sample_prompts=[]", "train.supervise=off", *more,
    ]  # fmt: skip


def child(job: dict[str, Any]) -> None:
    """One run in this process; prints {"cpu_seconds", "tokens", "bits_per_byte"}."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder = Path(job["folder"])
    size = size_of(job["size"])
    train = baseline if job["recipe"] is None else recipe
    result = train(folder, size, job)
    sys.stdout.write("\n" + json.dumps(result) + "\n")


def prepared(folder: Path, size: Size) -> Any:
    """The store of the training text, built once per vocabulary; its tokenizer serves all runs."""
    from wikillm.config.load import load
    from wikillm.data.prepare.prepare import prepare_store

    resolved = load("demo", recipe_words(folder, size, []))
    return prepare_store(resolved.config.data)


def baseline(folder: Path, size: Size, job: dict[str, Any]) -> dict[str, Any]:
    """The tutorial's way."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Trainer, set_seed
    from transformers import TrainingArguments as Arguments

    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(prepared(folder, size).tokenizer_dir)
    chunks = []
    for text in texts(folder / "train.jsonl"):
        ids = tokenizer(text)["input_ids"]
        chunks += [ids[at : at + CHUNK] for at in range(0, len(ids) - CHUNK + 1, CHUNK)]
    rows = [{"input_ids": ids, "labels": ids} for ids in chunks[: size.tokens // 2 // CHUNK]]
    assert len(rows) == size.tokens // 2 // CHUNK, f"only {len(rows) * CHUNK:,} tokens in chunks"
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=max(1, size.heads // 2),
            intermediate_size=size.feed_forward,
            vocab_size=size.vocab,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )  # fmt: skip
    )
    steps = math.ceil(2 * len(rows) / BATCH)
    trainer = Trainer(
        model,
        Arguments(
            output_dir=str(folder / "hf"), num_train_epochs=2, per_device_train_batch_size=BATCH,
            learning_rate=job.get("rate", 5e-4), lr_scheduler_type="cosine", weight_decay=0.1,
            warmup_steps=math.ceil(0.02 * steps), save_strategy="no", report_to="none",
            logging_steps=50, seed=job["seed"], use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=rows,
        data_collator=lambda rows: {
            key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")
        },
    )  # fmt: skip
    start = time.process_time()
    trainer.train()
    return {
        "cpu_seconds": time.process_time() - start,
        "tokens": 2 * len(rows) * CHUNK,
        "bits_per_byte": bits_per_byte(model, tokenizer, folder / "held-out.jsonl"),
    }


def recipe(folder: Path, size: Size, job: dict[str, Any]) -> dict[str, Any]:
    """WikiLLM, for `tokens` tokens; its time counts the start and the checkpoint too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wikillm.config.load import load
    from wikillm.train.run import pretrain

    with tempfile.TemporaryDirectory(dir=folder) as name:
        words = [
            "--max_tokens", str(job["tokens"]), *recipe_words(folder, size, job["recipe"]),
            f"run.seed={job['seed']}", f"run.dir={name}/run",
        ]  # fmt: skip
        start = time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            pretrain(load("demo", words))
        seconds = time.process_time() - start
        metrics = [
            json.loads(line)
            for line in (Path(name) / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        checkpoint = max((Path(name) / "run/checkpoints").glob("*-*"))
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(prepared(folder, size).tokenizer_dir)
        return {
            "cpu_seconds": seconds,
            "tokens": metrics[-1]["tokens"],
            "bits_per_byte": bits_per_byte(model, tokenizer, folder / "held-out.jsonl"),
        }


def texts(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def bits_per_byte(model: Any, tokenizer: Any, path: Path) -> float:
    """Of every document's tokens after its first, in windows of CHUNK tokens without overlap."""
    import torch

    model.eval()
    nats = 0.0
    size = 0
    with torch.no_grad():
        for text in texts(path):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            for at in range(0, len(ids) - 1, CHUNK - 1):
                window = torch.tensor([ids[at : at + CHUNK]])
                logits = model(window).logits[0, :-1].float()
                nats += torch.nn.functional.cross_entropy(
                    logits, window[0, 1:], reduction="sum"
                ).item()
            size += len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    return nats / math.log(2) / size


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job in a process of its own; one that was finished before is read from its folder."""
    name = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    kept = Path(job["folder"]) / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, __file__, "--data", "-", "--child", json.dumps(job)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{job} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result = dict(json.loads(done.stdout.strip().splitlines()[-1]))
    kept.write_text(json.dumps(result), encoding="utf-8")
    print(f"{job['size']} {job['recipe']} {result}", file=sys.stderr, flush=True)
    return result


def mean(results: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(float(result[key]) for result in results)


def compared(args: argparse.Namespace, folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one size: the tutorial's run, then the recipe at each share of its tokens."""
    seeds = range(1, args.seeds + 1)
    job = {"folder": str(folder), "size": name, "recipe": None}
    other_rate = {"rate": args.rate} if args.rate else {}
    base_seeds = seeds if args.baseline_seeds is None else range(1, args.baseline_seeds + 1)
    base = [run(job | other_rate | {"seed": seed}) for seed in base_seeds]
    way = f"tutorial at {args.rate:g}" if args.rate else "tutorial"
    rows = [{"way": way, "runs": base}] if base else []
    ways = {"recipe": []} | {words: [words] for words in args.tried}
    for share in args.shares:
        for way, words in ways.items():
            tokens = round(share * size_of(name).tokens)
            norm = f"model.final_norm_init={final_norm_init(size_of(name).hidden)}"
            recipe_job = job | {"recipe": [*RECIPE, norm, *words], "tokens": tokens}
            runs = [run(recipe_job | {"seed": seed}) for seed in seeds]
            rows.append({"way": way, "runs": runs})
    for row in rows:
        row |= {key: mean(row["runs"], key) for key in ("bits_per_byte", "tokens", "cpu_seconds")}
        worst = max(ours["bits_per_byte"] for ours in row["runs"])
        row["reached"] = all(worst <= theirs["bits_per_byte"] for theirs in base)
    return rows


def cells(name: str, row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    found = [float(result["bits_per_byte"]) for result in row["runs"]]
    spread = f" ({min(found):.3f} to {max(found):.3f})" if len(found) > 1 else ""
    against = ["", "", ""]
    if base["way"].startswith("tutorial") and row is not base:
        shares = [f"{row[key] / base[key]:.0%}" for key in ("tokens", "cpu_seconds")]
        against = [*shares, "yes" if row["reached"] else "no"]
    measured = f"{row['bits_per_byte']:.3f}{spread}"
    return [
        name,
        row["way"],
        f"{row['tokens']:,.0f}",
        measured,
        f"{row['cpu_seconds']:.0f}",
        *against,
    ]


def main() -> None:
    args = arguments()
    if args.child:
        child(json.loads(args.child))
        return
    facts: dict[str, Any] = {"circumstances": circumstances(), "recipe": RECIPE, "sizes": {}}
    table = []
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "held-out.jsonl").exists():
            split(args.data, folder)
        for name in args.sizes:
            rows = compared(args, folder, name)
            facts["sizes"][name] = rows
            table += [cells(name, row, rows[0]) for row in rows]
    header = ("size", "way", "tokens", "bits/byte", "CPU s", "of tokens", "of time", "reached")
    report("The tutorial's bits per byte, for how much less?", facts, header, table, args.out)


if __name__ == "__main__":
    main()
