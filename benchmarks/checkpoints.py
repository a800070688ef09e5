"""How long a save blocks training, beside Hugging Face's Trainer with DeepSpeed.

    python benchmarks/checkpoints.py --visits 2 --out checkpoints.json

Two gloo ranks train the same model at ZeRO-1 and save every few steps. The contenders run one
after the other, each in new processes:

    wikillm           training waits for the copy to memory, writing runs beside it
    wikillm-waiting   the same checkpoint, but training waits until it is published
    stock             Trainer and deepspeed.initialize as they are

`blocked` is the time from the call that saves to its return, `whole` until the checkpoint is
complete, `step` a step without and with a save beside it. `load` is the time to fill a fresh engine
from the last checkpoint, verification included.
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
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from benchmarks.record import circumstances  # noqa: E402

CONTENDERS = ("wikillm", "wikillm-waiting", "stock")
RANKS = 2
STEPS_PER_SAVE = 3


def words_of(args: argparse.Namespace, folder: Path) -> list[str]:
    """Configuration of a run of `args.saves` saves; stock takes the model and the data from it."""
    corpus = folder.parent / "corpus.jsonl"
    if not corpus.exists():
        rows = (json.dumps({"text": f"第{n}篇文字。" * 30}) for n in range(2000))
        corpus.write_text("\n".join(rows), encoding="utf-8")
    return [
        f"model.preset={args.preset}", f"model.vocab_size={args.vocab}",
        f"data.path={corpus}", f"data.store={folder.parent / 'store'}", "data.tokenizer=train:600",
        "data.min_val_tokens=500", "data.workers=1",
        "train.sequence_length=64", "train.per_device_train_batch_size=1",
        f"train.global_batch_tokens={64 * RANKS}", "train.warmup_steps=1",
        "train.eval_steps=null", "train.max_eval_tokens=128",
        f"train.max_steps={args.saves * STEPS_PER_SAVE}", f"train.save_steps={STEPS_PER_SAVE}",
        "train.save_total_limit=1", "train.logging_steps=1", "train.weight_check_steps=0",
        f"run.dir={folder}", "observe.swanlab.mode=disabled", "observe.sample_prompts=[]",
    ]  # fmt: skip


class Stopwatch:
    """Times of one rank: of saves, and of steps with and without a save beside them."""

    def __init__(self) -> None:
        self.blocked: list[float] = []
        self.whole: list[float] = []
        self.steps: list[float] = []
        self.steps_beside: list[float] = []
        self.load = 0.0

    def watch_steps(self, is_writing: Any) -> None:
        """Time `Trainer.training_step` and the optimizer's part, from call to call."""
        from transformers import Trainer

        original = Trainer.training_step
        last: dict[str, Any] = {}

        def training_step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            now = time.perf_counter()
            saved = len(self.blocked)
            if last and last["saved"] == saved:
                (self.steps_beside if last["beside"] else self.steps).append(now - last["at"])
            last.update(at=now, saved=saved, beside=is_writing())
            return original(trainer, *args, **kwargs)

        Trainer.training_step = training_step  # type: ignore[method-assign]

    def watch_saves(self, kind: Any, name: str, whole: list[float]) -> None:
        """Time a method of a class."""
        original = getattr(kind, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = original(*args, **kwargs)
            whole.append(time.perf_counter() - start)
            return result

        setattr(kind, name, timed)


def run_wikillm(words: list[str], watch: Stopwatch, *, waits: bool, resume: bool) -> None:
    from wikillm.config.load import load
    from wikillm.train import restore, saver, trainer
    from wikillm.train.run import pretrain

    savers: list[Any] = []
    begin = saver.CheckpointSaver.__init__

    def remember(self: Any, *args: Any) -> None:
        begin(self, *args)
        savers.append(self)

    saver.CheckpointSaver.__init__ = remember  # type: ignore[method-assign]
    if waits:
        saver.CheckpointSaver._fits = lambda self, size: False  # type: ignore[method-assign]
        saver.PIECE_BYTES = 64 << 30
    watch.watch_steps(lambda: bool(savers) and savers[-1].is_writing)
    watch.watch_saves(trainer.WikiTrainer, "_save_checkpoint", watch.blocked)
    watch.watch_saves(saver.CheckpointSaver, "_run", watch.whole)
    loads: list[float] = []
    original = restore.restore

    def timed(*args: Any) -> None:
        start = time.perf_counter()
        original(*args)
        loads.append(time.perf_counter() - start)

    trainer.restore = timed
    resolved = load(None, words, "zero1")
    pretrain(resolved, resume="auto" if resume else "never", allow_change=resume)
    watch.load = sum(loads)


def run_stock(words: list[str], watch: Stopwatch, *, resume: bool) -> None:
    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainingArguments, trainer

    from wikillm.config.load import load
    from wikillm.core.world import World
    from wikillm.models.build import build_model
    from wikillm.train.engine import Engine, start_engine

    resolved = load(None, words)
    train = resolved.config.train
    zero1: dict[str, Any] = {
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": False},
    }
    start_engine(World.from_env(), Engine("fp32", zero1, ()))
    args = TrainingArguments(
        output_dir=resolved.config.run.dir or "",
        per_device_train_batch_size=1,
        max_steps=train.max_steps or 1,
        save_steps=train.save_steps,
        save_total_limit=1,
        deepspeed=zero1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
    )
    vocab = int(resolved.config.model.vocab_size)
    model = build_model(resolved.config.model, vocab, args, eos_id=0, seed=1)

    class Random(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
            ids = torch.randint(0, 500, (64,), generator=torch.Generator().manual_seed(at))
            return {"input_ids": ids, "labels": ids}

    watch.watch_steps(lambda: False)
    watch.watch_saves(Trainer, "_save_checkpoint", watch.blocked)
    loads: list[float] = []
    load_engine = trainer.deepspeed_load_checkpoint

    def timed(*given: Any, **more: Any) -> None:
        start = time.perf_counter()
        load_engine(*given, **more)
        loads.append(time.perf_counter() - start)

    trainer.deepspeed_load_checkpoint = timed
    Trainer(model=model, args=args, train_dataset=Random()).train(
        resume_from_checkpoint=True if resume else None
    )
    watch.whole = watch.blocked
    watch.load = sum(loads)


def rank_main(order: dict[str, Any]) -> None:
    watch = Stopwatch()
    name = order["name"]
    if name == "stock":
        run_stock(order["words"], watch, resume=order["resume"])
    else:
        waits = name == "wikillm-waiting"
        run_wikillm(order["words"], watch, waits=waits, resume=order["resume"])
    if os.environ["RANK"] == "0":
        Path(order["result"]).write_text(json.dumps(vars(watch)), encoding="utf-8")


def start(name: str, words: list[str], folder: Path, *, resume: bool) -> dict[str, Any]:
    """Run all ranks of one contender; returns the times of rank 0."""
    result = folder.with_suffix(".json")
    order = {"name": name, "words": words, "result": str(result), "resume": resume}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(RANKS):
        environ = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPO),
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        log = open(folder.with_suffix(f".{rank}.log"), "a", encoding="utf-8")  # noqa: SIM115
        words_of_rank = [
            sys.executable,
            "-m",
            "benchmarks.checkpoints",
            "--rank",
            json.dumps(order),
        ]
        processes.append(
            subprocess.Popen(words_of_rank, env=environ, stdout=log, stderr=log, cwd=REPO)
        )
    codes = [process.wait() for process in processes]
    if any(codes):
        log_text = folder.with_suffix(".0.log").read_text(encoding="utf-8")[-3000:]
        raise SystemExit(f"{name} ended with {codes}:\n{log_text}")
    return dict(json.loads(result.read_text(encoding="utf-8")))


def measure(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Visit the contenders in turns; keep the best disk cache out by a new folder per visit."""
    found: dict[str, Any] = {name: {} for name in args.contenders}
    for visit in range(args.visits):
        order = list(args.contenders)
        for name in order if visit % 2 == 0 else reversed(order):
            folder = place / f"{name}-{visit}"
            words = words_of(args, folder)
            times = start(name, words, folder, resume=False)
            more = [*words, f"train.max_steps={(args.saves + 1) * STEPS_PER_SAVE}"]
            changed = [word for word in more if word != words[-1]]
            again = start(name, changed, folder, resume=True) if args.load else {"load": 0.0}
            times["load"] = again["load"]
            newest = max(folder.rglob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
            times["bytes"] = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
            for key, value in times.items():
                values = value if isinstance(value, list) else [value]
                found[name].setdefault(key, []).extend(values)
            shutil.rmtree(folder)
            print(name, {k: round(statistics.median(v), 3) for k, v in found[name].items() if v})
    return found


def table(found: dict[str, Any]) -> str:
    lines = ["| | blocked s | whole s | step s | step beside a save s | load s | GB |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, times in found.items():
        cells = []
        for key in ("blocked", "whole", "steps", "steps_beside", "load"):
            # The first save of a start makes the buffer, the first step compiles and allocates.
            values = times[key]
            cells.append(
                f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
                if values
                else "-"
            )
        cells.append(f"{statistics.median(times['bytes']) / 1e9:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--preset", default="120m")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--visits", type=int, default=2)
    parser.add_argument("--load", action="store_true", help="measure a resume of each visit too")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rank is not None:
        rank_main(args.rank)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        found = measure(args, Path(place))
    print(table(found))
    if args.out:
        record = {**circumstances(), "ranks": RANKS, "contenders": found}
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
