"""The steps of benchmarks/gpu.py: what each one runs, within what time, and which result it leaves.

In order of worth: a short budget gets the first ones. A step is one command in a process of its
own. `least` is the time that must be left to begin it; it is stopped after `limit` seconds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wikillm.config.load import load
from wikillm.config.schema_types import Checkpointing
from wikillm.plan.memory import KEPT_FREE, memory_per_rank
from wikillm.plan.strategy import Loss, Strategy
from wikillm.plan.workload import Workload

VOCAB = 151_936
GLOBAL_TOKENS = 131_072
"""Of a mission's optimizer step: 256 sequences of 512 tokens."""


@dataclass(frozen=True)
class Setting:
    """Where and on what is measured. `memory`: usable bytes of the card. `scratch`: large files."""

    out: Path
    scratch: Path
    text: str
    tokenizer: str
    memory: int
    rehearse: bool = False  # tiny shapes on a CPU


@dataclass(frozen=True)
class Shape:
    """A training step of benchmarks/train.py: `batch` sequences of `length` tokens."""

    preset: str
    length: int
    batch: int
    checkpointing: Checkpointing = "none"

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.length}-{self.batch}"

    def planned(self, loss: Loss = "chunked") -> tuple[Workload, Strategy]:
        """For the planner's formulas: one GPU, bf16, PyTorch's data parallel engine."""
        words = [f"model.preset={self.preset}", f"model.vocab_size={VOCAB}"]
        config = load(None, [*words, "data.path=unused", "train.max_steps=1"]).config
        strategy = Strategy(
            "ddp", 0, 1, 1, self.batch, 1, "bf16", checkpointing=self.checkpointing, loss=loss
        )
        return Workload(config.model, VOCAB, self.length), strategy


@dataclass(frozen=True)
class Step:
    """`command`: None where the card is too small. `result`: what the finished command left."""

    name: str
    what: str
    limit: int
    least: int
    command: Callable[[Setting], list[str] | None]
    result: Callable[[Setting], dict[str, Any]]


def fitting(shape: Shape, memory: int, loss: Loss = "chunked") -> Shape | None:
    """The shape with as many sequences as fit into `memory` bytes by the plan, halved as needed."""
    batch = shape.batch
    while batch:
        smaller = replace(shape, batch=batch)
        if memory_per_rank(*smaller.planned(loss)).total <= (1 - KEPT_FREE) * memory:
            return smaller
        batch //= 2
    return None


def steps() -> list[Step]:
    """All steps, the most valuable first."""
    all_five = ("hf", "hf-liger", "bare-fused", "wikillm", "wikillm-compiled")
    three = ("hf", "wikillm", "wikillm-compiled")
    big = replace(Shape("3b", 4096, 2), checkpointing="full")
    return [
        Step(
            "machine", "the machine: products, copies, attention", 40, 10, _machine, _raw("machine")
        ),
        Step("store", "the token store of the text", 60, 15, _store, _nothing),
        _mission("mission", 2, limit=120, least=50),
        _train("train_120m", Shape("120m", 512, 32), all_five, loss="stock", limit=330, least=100),
        Step("tests", "tests/gpu", 260, 60, _tests, _test_counts),
        Step("losses", "projection and loss alone", 150, 40, _losses, _raw("losses")),
        _train("train_0.5b", Shape("0.5b", 2048, 8), three, loss="stock", limit=200, least=80),
        _mission("mission_zero3", 3, limit=100, least=50),
        _train("train_1.5b", Shape("1.5b", 4096, 2), three[1:], limit=150, least=60),
        _train("train_3b", big, three[1:], limit=180, least=70),
        Step("profile", "one profile of the 120M step", 120, 50, _profile, _raw("profile")),
    ]


def _script(name: str, setting: Setting, step: str, *words: str) -> list[str]:
    """A benchmark that writes OUT/STEP.raw.json."""
    out = ["--out", str(setting.out / f"{step}.raw.json")]
    return [sys.executable, f"benchmarks/{name}", *words, *out]


def _tiny(steps: int = 3) -> list[str]:
    """Instead of a preset's shape in a rehearsal."""
    words = f"--hidden 64 --layers 1 --vocab 512 --batch 2 --length 32 --steps {steps} --warmup 1"
    return words.split()


def _machine(setting: Setting) -> list[str]:
    return _script("gpu_machine.py", setting, "machine", *(["--quick"] * setting.rehearse))


def _data(setting: Setting) -> list[str]:
    store = f"data.store={setting.scratch / 'store'}"
    words = [f"data.path={setting.text}", f"data.tokenizer={setting.tokenizer}", store]
    return [*words, "data.min_val_tokens=1000"]


def _store(setting: Setting) -> list[str]:
    return [sys.executable, "-m", "wikillm", "prepare", *_data(setting)]


def _mission(name: str, stage: int, *, limit: int, least: int) -> Step:
    """120M as the README trains it: `deepspeed train.py`, on real text, to its horizon."""

    def run_dir(setting: Setting) -> Path:
        return setting.scratch / f"run-{name}"

    def command(setting: Setting) -> list[str] | None:
        shape = fitting(Shape("120m", 512, 64), setting.memory)
        if shape is None:
            return None
        size = [f"train.per_device_train_batch_size={shape.batch}", "--max_steps", "60"]
        size += [f"train.global_batch_tokens={GLOBAL_TOKENS}", "--warmup_steps", "10"]
        size += [f"model.vocab_size={VOCAB}", "--logging_steps", "10"]
        if setting.rehearse:
            size = "model.preset=tiny train.sequence_length=64 --max_steps 4 --logging_steps 1"
            size += " train.per_device_train_batch_size=2 train.global_batch_tokens=256"
            size = [*size.split(), "--warmup_steps", "1"]
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1"]
        recipe = ["train.py", "--deepspeed", f"ds_configs/zero{stage}.json"]
        quiet = ["observe.swanlab.mode=disabled", "observe.sample_prompts=[]"]
        rest = [f"run.dir={run_dir(setting)}", "train.max_eval_tokens=100000"]
        return [*launcher, *recipe, *_data(setting), *quiet, *rest, *size]

    def result(setting: Setting) -> dict[str, Any]:
        run = run_dir(setting)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return {
            "outcome": json.loads((run / "outcome.json").read_text(encoding="utf-8")),
            "metrics": [json.loads(line) for line in lines],
        }

    what = f"deepspeed train.py --deepspeed zero{stage}, 120M on the text"
    return Step(name, what, limit, least, command, result)


def _train(
    name: str,
    shape: Shape,
    contenders: tuple[str, ...],
    *,
    limit: int,
    least: int,
    loss: Loss = "chunked",
) -> Step:
    """A training step beside the contenders; `loss`: that of the one that needs most memory."""

    def command(setting: Setting) -> list[str] | None:
        if setting.rehearse:
            names = ["--contenders", "hf", "wikillm"]
            return _script("train.py", setting, name, *_tiny(), *names)
        found = fitting(shape, setting.memory, loss)
        if found is None:
            return None
        words = ["--gpu", "--shapes", found.name, "--visits", "1", "--steps", "60"]
        words += ["--warmup", "10", "--contenders", *contenders]
        return _script("train.py", setting, name, *words)

    what = f"a training step of {shape.name}: {', '.join(contenders)}"
    return Step(name, what, limit, least, command, _raw(name))


def _tests(setting: Setting) -> list[str]:
    where = ["tests/unit/test_training_benchmark.py"] if setting.rehearse else ["tests/gpu"]
    return [sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "no:cacheprovider", *where]


def _losses(setting: Setting) -> list[str]:
    words = ["--gpu", "--repeats", "5"]
    if setting.rehearse:
        words = ["--rows", "64", "--hidden", "32", "--vocab", "700", "--repeats", "1"]
    return _script("losses.py", setting, "losses", *words)


def _profile(setting: Setting) -> list[str] | None:
    if setting.rehearse:
        return _script("train.py", setting, "profile", *_tiny(), "--profile", "--contenders",
                       "wikillm")  # fmt: skip
    found = fitting(Shape("120m", 512, 32), setting.memory)
    if found is None:
        return None
    words = ["--gpu", "--shapes", found.name, "--visits", "1", "--steps", "30", "--profile"]
    return _script("train.py", setting, "profile", *words, "--contenders", "wikillm-compiled")


def _nothing(_: Setting) -> dict[str, Any]:
    return {}


def _raw(step: str) -> Callable[[Setting], dict[str, Any]]:
    """What the benchmark of a step wrote so far."""
    return lambda setting: dict(
        json.loads((setting.out / f"{step}.raw.json").read_text(encoding="utf-8"))
    )


def _test_counts(setting: Setting) -> dict[str, Any]:
    """Counts by outcome and the names of failed tests, from a log that may end anywhere."""
    log = (setting.out / "tests.log").read_text(encoding="utf-8", errors="replace")
    outcomes = re.findall(r"^(\S+::\S+.*?) (PASSED|FAILED|SKIPPED|ERROR)\b", log, re.MULTILINE)
    counts = {kind.lower(): 0 for kind in ("PASSED", "FAILED", "SKIPPED", "ERROR")}
    for _, kind in outcomes:
        counts[kind.lower()] += 1
    return counts | {"names": [name for name, kind in outcomes if kind in ("FAILED", "ERROR")]}
