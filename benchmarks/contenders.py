"""One contender of benchmarks/train.py: it waits for its turn before every step.

    python -m benchmarks.contenders '{"name": "hf", "words": [...], "steps": 30, "fd": 3}'

All of them build the same model (weights by seed and name), read the same samples in the same
order, use AdamW with the same groups, clip at 1.0 and divide by the same count: after equal steps
their losses must be equal.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from benchmarks.record import peak_bytes
from wikillm.config.load import load
from wikillm.config.resolved import Resolved
from wikillm.data.order.blocks import SampleOrder
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.loader import BatchShape, train_loader
from wikillm.models.build import build_model
from wikillm.models.fused_loss import patch_loss

STOCK: dict[str, dict[str, Any]] = {
    "hf": {},
    "hf-liger": {"use_liger_kernel": True},
    "hf-compiled": {"torch_compile": True},
}
"""Arguments of Hugging Face's Trainer besides those of the run, by contender."""
CHECKPOINTING = {"use_reentrant": False}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Pacer:
    """Stops the contender before each turn until the parent sends go; exits after the last.

    A turn is `stretch` steps, and what is reported of it is per step. `steps` and `profiled` count
    turns.
    """

    def __init__(self, fd: int, steps: int, profiled: int = 0, stretch: int = 1) -> None:
        self._stretch, self._steps_begun = stretch, 0
        self._reports = os.fdopen(fd, "w", encoding="utf-8")
        self._profiled, self._profiler = profiled, profiler() if profiled else None
        self._left, self._losses = steps, list[torch.Tensor]()
        self._started: tuple[float, float] | None = None

    def turn(self) -> None:
        """Called before each step."""
        self._steps_begun += 1
        if (self._steps_begun - 1) % self._stretch:
            return
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        line: dict[str, Any] = {}
        if self._started is not None:
            wall, cpu = (
                time.perf_counter() - self._started[0],
                time.process_time() - self._started[1],
            )
            line = {"wall": wall / self._stretch, "cpu": cpu / self._stretch}
            self._left -= 1
        if self._profiler is not None and self._left == self._profiled:
            self._profiler.start()
        if self._left == 0:
            line |= {"losses": [float(loss) for loss in self._losses], "peak": peak_bytes(DEVICE)}
            if self._profiler is not None:
                self._profiler.stop()
                line["profile"] = busiest(self._profiler)
                line["kinds"] = by_kind(self._profiler, self._profiled * self._stretch)
        self._reports.write(json.dumps(line) + "\n")
        self._reports.flush()
        if self._left == 0 or not sys.stdin.readline():
            os._exit(0)  # in the middle of training: nothing after the last step is measured
        self._started = time.perf_counter(), time.process_time()

    def keep(self, loss: torch.Tensor) -> torch.Tensor:
        self._losses.append(loss.detach())
        return loss


def profiler() -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    return torch.profiler.profile(
        activities=activities + ([torch.profiler.ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    )


KINDS = (
    ("attention", r"flash|fmha|scaled_dot_product|_attention"),
    ("products", r"gemm|nvjet|cutlass|xmma|cublas|splitK|(aten::)?(add|b)?mm$|aten::linear"),
    ("optimizer", r"multi_tensor|adam|foreach"),
    ("communication", r"nccl|gloo|c10d"),
    ("copies", r"memcpy|memset|copy_|_to_copy|fill"),
    ("loss", r"softmax|nll_loss|cross_entropy|embedding|index"),
)
"""What a kernel's name says it does, the first match counts; the rest is norms, rotations, sums."""


def by_kind(profile: torch.profiler.profile, steps: int) -> dict[str, float]:
    """Milliseconds per step by kind of operation, by the operations' own time on the device."""
    found: dict[str, float] = {}
    for event in _events(profile):
        matches = (kind for kind, names in KINDS if re.search(names, event.key, re.IGNORECASE))
        kind = next(matches, "elementwise")
        found[kind] = found.get(kind, 0.0) + getattr(event, _own_time()) / 1e3 / steps
    return found


def _own_time() -> str:
    return "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"


def _events(profile: torch.profiler.profile) -> list[Any]:
    """On a GPU kernels alone: an operation has the time of the kernels that it launched as well."""
    events: list[Any] = list(profile.key_averages())
    if DEVICE == "cpu":
        return events
    kernels = torch.autograd.DeviceType.CUDA
    return [
        e
        for e in events
        if e.device_type == kernels and not getattr(e, "is_user_annotation", False)
    ]


def busiest(profile: torch.profiler.profile, count: int = 15) -> list[dict[str, Any]]:
    """Time of the profiled steps: operations by their own time on the device, with share."""
    own = _own_time()
    events = _events(profile)
    events.sort(key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events) or 1.0
    return [
        {
            "operation": event.key,
            "calls": event.count,
            "ms": getattr(event, own) / 1e3,
            "share": getattr(event, own) / total,
        }
        for event in events[:count]
    ]


class Batches:
    """The run's samples as batches of this one process, on `train_loader`."""

    def __init__(self, resolved: Resolved) -> None:
        train, self.store = resolved.config.train, prepare_store(resolved.config.data)
        self.batch, self.length = train.per_device_train_batch_size, train.sequence_length
        order = SampleOrder(self.store.train.n_tokens, self.length, resolved.config.run.seed)
        shape = BatchShape(self.batch, 1, 1, 0)
        self.loader = train_loader(self.store.train, order, shape, total_steps=train.max_steps or 1)


class Rows(IterableDataset[dict[str, torch.Tensor]]):
    """The same samples one by one, for the Trainer to collate as it does."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches.loader:
            for row in range(self.batches.batch):
                yield {key: value[row] for key, value in batch.items()}


def arguments(resolved: Resolved, **more: Any) -> TrainingArguments:
    train = resolved.config.train
    return TrainingArguments(
        output_dir=resolved.config.run.dir or "",
        per_device_train_batch_size=train.per_device_train_batch_size,
        max_steps=train.max_steps or 1,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused" if DEVICE == "cuda" else "adamw_torch",
        bf16=train.precision == "bf16",
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        logging_steps=train.logging_steps,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=resolved.config.run.seed,
        gradient_checkpointing=train.gradient_checkpointing == "full",
        gradient_checkpointing_kwargs=CHECKPOINTING,
        **more,
    )


def model_of(resolved: Resolved, args: TrainingArguments, batches: Batches) -> Any:
    model, tokenizer = resolved.config.model, batches.store.manifest.tokenizer
    assert model.vocab_size != "auto", "WikiLLM would take the tokenizer's"
    return build_model(
        model, model.vocab_size, args, eos_id=tokenizer.eos_id, seed=resolved.config.run.seed
    )


def hugging_face(resolved: Resolved, pacer: Pacer, **more: Any) -> None:
    _pace_trainer(pacer)
    args, batches = arguments(resolved, **more), Batches(resolved)
    Trainer(model=model_of(resolved, args, batches), args=args, train_dataset=Rows(batches)).train()


def wikillm(resolved: Resolved, pacer: Pacer) -> None:
    from wikillm.train.run import pretrain

    _pace_trainer(pacer)
    pretrain(resolved)


def bare(resolved: Resolved, pacer: Pacer, *, fused: bool) -> None:
    """The loop that a person would write for one device, and nothing else in it."""
    args, batches, train = arguments(resolved), Batches(resolved), resolved.config.train
    model = model_of(resolved, args, batches).to(DEVICE)
    if train.gradient_checkpointing == "full":
        model.gradient_checkpointing_enable(CHECKPOINTING)
    if fused:
        patch_loss(model, rows=batches.batch * batches.length, device_type=DEVICE)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (train.adam_beta1, train.adam_beta2)
    optimizer = torch.optim.AdamW(
        groups, lr=train.learning_rate, betas=betas, fused=DEVICE == "cuda" or None
    )
    count = torch.tensor(batches.batch * batches.length, device=DEVICE)
    model.train()
    for batch in batches.loader:
        pacer.turn()
        on_device = {key: value.to(DEVICE, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = pacer.keep(model(**on_device, num_items_in_batch=count).loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def _pace_trainer(pacer: Pacer) -> None:
    """Before `Trainer.training_step`, which WikiLLM's calls: a step is from start to start."""
    original = Trainer.training_step

    def training_step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        pacer.turn()
        return pacer.keep(original(self, *args, **kwargs))

    Trainer.training_step = training_step  # type: ignore[method-assign]


def main() -> None:
    order = json.loads(sys.argv[1])
    pacer = Pacer(order["fd"], order["steps"], order["profiled"], order["stretch"])
    resolved = load(None, order["words"])
    if order["name"] in STOCK:
        hugging_face(resolved, pacer, **STOCK[order["name"]])
    elif order["name"].startswith("wikillm"):
        wikillm(resolved, pacer)
    else:
        bare(resolved, pacer, fused=order["name"] == "bare-fused")


if __name__ == "__main__":
    main()
