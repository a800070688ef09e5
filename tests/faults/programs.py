"""What a rank runs: WikiLLM's run or stock Hugging Face, each step with a record of its samples."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.programs import train

SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "USR1": signal.SIGUSR1}


def ours(words: list[str], options: dict[str, Any], record: str, fault: dict[str, Any]) -> Any:
    """Run `wikillm train` on this rank with a fault. Returns exit code, message and output.

    Args:
        record: path of the record of steps, without the rank's number.
        fault: see `_injected`.
    """
    from wikillm.train.trainer import WikiTrainer

    _watch_steps(WikiTrainer, record, fault, lambda inputs: inputs)
    # The tests may run under nohup, or in the background.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result = train(words, **options)
    return {name: result[name] for name in ("code", "message", "output")}


def stock(settings: dict[str, Any], record: str, fault: dict[str, Any]) -> Any:
    """Train the same tiny model with Hugging Face's Trainer, as its examples resume a run."""
    from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils import logging

    from faults.stock_data import Blocks, tiny_qwen2

    logging.set_verbosity_error()
    _watch_steps(Trainer, record, fault, lambda inputs: [inputs])
    folder = settings.pop("folder")
    data = Blocks(settings.pop("tokens"), settings.pop("length"))
    vocab = settings.pop("vocab")
    args = TrainingArguments(output_dir=folder, **settings)
    set_seed(args.seed)
    model = Qwen2ForCausalLM(tiny_qwen2(vocab))
    trainer = Trainer(model=model, args=args, train_dataset=data)
    newest = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=newest)
    return {"code": 0, "message": "", "output": ""}


def _watch_steps(
    trainer: type, record: str, fault: dict[str, Any], batches_of: Callable[[Any], list[Any]]
) -> None:
    """Record every step of this rank, and inject the fault at its step. Output goes to a file."""
    rank = int(os.environ["RANK"])
    log = os.open(f"{record}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    file = os.open(f"{record}.{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    original = trainer.training_step  # type: ignore[attr-defined]

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        step = self.state.global_step
        _inject(self, fault, step, rank, before=True)
        began = time.time()
        loss = original(self, model, inputs, *args, **kwargs)
        _inject(self, fault, step, rank, before=False)
        rows = [row for batch in batches_of(inputs) for row in batch["input_ids"]]
        digests = [hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest()[:12] for row in rows]
        line = {"step": step, "rank": rank, "rows": digests, "loss": float(loss).hex()}
        os.write(file, (json.dumps(line | {"time": began}) + "\n").encode())
        return loss

    trainer.training_step = training_step  # type: ignore[attr-defined]


def _inject(trainer: Any, fault: dict[str, Any], step: int, rank: int, *, before: bool) -> None:
    """The fault of this step and rank.

    Keys: step, rank (-1 for all), and one of
    signal: a name of SIGNALS, sent to itself;
    calls: count the calls below this folder (interpose.c); at, half, log: see `interpose.arm`;
    dies: of several ranks that count, the one that dies;
    until: the step at which to write the count into `counted`;
    kill: die at that step; suspend: stop at it; pause: take so many seconds for it;
    poison: loss, gradient, weight or state becomes NaN.
    """
    if fault.get("rank") not in (rank, -1):
        return
    if before and "calls" in fault:
        _count(fault, step, rank)
    if step != fault.get("step"):
        return
    if before and fault.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if before and fault.get("suspend"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if before and "pause" in fault:
        until = time.monotonic() + fault["pause"]
        while time.monotonic() < until:  # a signal's handler does not end it
            time.sleep(0.05)
    if before and "signal" in fault:
        os.kill(os.getpid(), SIGNALS[fault["signal"]])
    if "poison" in fault:
        _poison(trainer, fault["poison"], before=before)


def _count(fault: dict[str, Any], step: int, rank: int) -> None:
    from faults import interpose

    if step == fault["step"]:
        log = f"{fault['log']}.{rank}" if fault.get("log") else ""
        at = fault.get("at", -1) if fault.get("dies", rank) == rank else -1
        interpose.arm(fault["calls"], at, half=fault.get("half", False), log=log)
    if step == fault.get("until"):
        Path(fault["counted"]).write_text(str(interpose.seen()))


def _poison(trainer: Any, what: str, *, before: bool) -> None:
    """Put a NaN into the loss, a gradient, a weight or the optimizer's state of a step."""
    import torch

    if what == "loss" and before:
        compute = trainer.compute_loss

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            trainer.compute_loss = compute
            return compute(*args, **kwargs) * float("nan")

        trainer.compute_loss = compute_loss
    weights = list(trainer.model.parameters())
    if what == "weight" and before:
        with torch.no_grad():  # under ZeRO-3 a rank holds its part of a weight
            getattr(weights[0], "ds_tensor", weights[0]).data.view(-1)[0] = float("nan")
    if what == "gradient" and before:
        hooked = weights[-1]
        handle = hooked.register_hook(lambda gradient: gradient * float("nan"))
        trainer._poisoned = handle
    if what == "gradient" and not before:
        trainer._poisoned.remove()
    if what == "state" and before:
        optimizer = trainer.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.numel() > 1:
                    value.view(-1)[0] = float("nan")
                    return
        raise AssertionError("the optimizer has no state to poison")
