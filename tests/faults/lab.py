"""Start tiny runs, kill them, resume them, and compare with a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from harness.corpus import write_corpus
from harness.programs import tensor_digest
from harness.ranks import run_ranks
from harness.tiny_run import tiny_words

from faults import programs
from faults.job import Job
from faults.record import Record, read_record
from wikillm.config.load import load
from wikillm.data.prepare.prepare import prepare_store

STEPS = 12
SAVE_STEPS = 2
KEEP = 3
MICRO_BATCH = 2
L2 = 1e-3  # relative difference of losses that another number of ranks or ZeRO stage may have
RECIPES = Path(__file__).resolve().parents[2] / "ds_configs"
TINY = (
    f"train.max_steps={STEPS}", f"train.save_steps={SAVE_STEPS}",
    f"train.save_total_limit={KEEP}", "train.eval_steps=null",
    f"train.per_device_train_batch_size={MICRO_BATCH}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """How a run is trained: `wikillm` or stock `hf`, its ranks, recipe (None: DDP), optimizer."""

    side: str = "wikillm"
    world: int = 1
    recipe: str | None = None
    optimizer: str = "adamw"

    def __str__(self) -> str:
        engine = self.recipe or "ddp"
        return f"{self.side}/{self.world}x{engine}/{self.optimizer}"


@dataclass(frozen=True, slots=True)
class Oracle:
    """An undisturbed run: its record, final weights and seconds."""

    record: Record
    weights: str
    seconds: float
    folder: Path


@dataclass(slots=True)
class Run:
    """One run directory and the starts made in it."""

    lab: Lab
    setup: Setup
    folder: Path
    starts: int = 0
    more: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints" if self.setup.side == "wikillm" else self.folder

    def start(
        self,
        fault: dict[str, Any] | None = None,
        setup: Setup | None = None,
        words: tuple[str, ...] = (),
    ) -> Job:
        """Start or resume it, with more `words` this time.

        `setup`: with other ranks, recipe or optimizer from now on.
        """
        self.setup = setup or self.setup
        record = self.folder.with_suffix(".record")
        record.mkdir(exist_ok=True)
        name = str(record / str(self.starts))
        options: dict[str, Any] = {"resume": "auto"}
        self.starts += 1
        if self.setup.side == "hf":
            settings = self.lab.stock_settings(self.setup, self.folder)
            return Job(programs.stock, self.setup.world, settings, name, fault or {})
        optimizer = [f"train.optimizer={self.setup.optimizer}"]
        if self.setup.optimizer == "muon":
            optimizer.append("train.max_grad_norm=0")
        given = self.lab.words(self.folder, *optimizer, *self.more, *words)
        if self.setup.recipe:
            options["deepspeed"] = self.lab.recipe(self.setup)
        return Job(programs.ours, self.setup.world, given, options, name, fault or {})

    def record(self) -> Record:
        return read_record(self.folder.with_suffix(".record"))

    def weights(self) -> str:
        return tensor_digest(self.checkpoints / f"checkpoint-{STEPS}")

    def remove(self) -> None:
        for path in (self.folder, self.folder.with_suffix(".record")):
            shutil.rmtree(path, ignore_errors=True)


class Lab:
    """A folder with a corpus, a token store and one oracle run per setup."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.corpus = folder / "corpus.jsonl"
        if not self.corpus.exists():
            write_corpus(self.corpus)
        self._words = tiny_words(self.corpus, folder / "store" / "store")
        # The store and the server's imports come before the first run, whose time is measured.
        with redirect_stdout(StringIO()):
            self._store = prepare_store(load(None, self.words(folder / "none")).config.data)
        run_ranks(os.getpid, 1)
        self._oracles: dict[Setup, Oracle] = {}
        self.templates: dict[Setup, Run] = {}
        self._count = 0

    def words(self, run: Path, *more: str) -> list[str]:
        given = {word.split("=")[0] for word in more}
        base = [word for word in TINY if word.split("=")[0] not in given]
        return self._words(run, *base, *more)

    def recipe(self, setup: Setup) -> str:
        """A DeepSpeed JSON of ds_configs/, as the optimizer needs it."""
        if setup.optimizer != "muon" or setup.recipe != "zero3":
            return str(RECIPES / f"{setup.recipe}.json")
        path = self.folder / "zero3_muon.json"
        content = json.loads((RECIPES / "zero3.json").read_text())
        content["zero_optimization"]["reduce_scatter"] = False
        path.write_text(json.dumps(content))
        return str(path)

    @cached_property
    def _stock_tokens(self) -> tuple[str, int]:
        """The store's training tokens as a file of their own, and the size of the vocabulary."""
        store = self._store
        path = self.folder / "tokens.npy"
        np.save(path, store.train.read(0, store.train.n_tokens))
        return str(path), 640

    def stock_settings(self, setup: Setup, run: Path) -> dict[str, Any]:
        """Arguments of Hugging Face's Trainer: the same batch, steps, rate and checkpoints."""
        tokens, vocab = self._stock_tokens
        settings: dict[str, Any] = {
            "folder": str(run), "tokens": tokens, "length": 32, "vocab": vocab,
            "per_device_train_batch_size": MICRO_BATCH,
            "gradient_accumulation_steps": 8 // MICRO_BATCH // setup.world,
            "max_steps": STEPS, "learning_rate": 1e-2, "warmup_steps": 2, "logging_steps": 1,
            "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": KEEP,
            "use_cpu": True, "report_to": "none", "disable_tqdm": True, "log_level": "error",
        }  # fmt: skip
        if setup.world > 1:
            settings["ddp_backend"] = "gloo"
        if setup.recipe:
            settings["deepspeed"] = self.recipe(setup)
        return settings

    def new_run(self, setup: Setup, *more: str) -> Run:
        self._count += 1
        return Run(self, setup, self.folder / f"run-{os.getpid()}-{self._count}", more=more)

    def oracle(self, setup: Setup) -> Oracle:
        """The undisturbed run of `setup`; trained at the first request."""
        if setup not in self._oracles:
            run = self.new_run(setup)
            job = run.start()
            ended = job.end()
            assert all(each.code == 0 for each in ended), ended
            record = run.record()
            seconds = record.ended - job.began + 0.3
            self._oracles[setup] = Oracle(record, run.weights(), seconds, run.folder)
        return self._oracles[setup]


@dataclass(frozen=True, slots=True)
class Difference:
    """A run beside the oracle: samples lost and repeated, equality, largest relative loss."""

    lost: int
    repeated: int
    is_l0: bool
    is_l1: bool
    loss: float

    @property
    def level(self) -> str:
        if not self.is_l0:
            return "none"
        if self.is_l1:
            return "L0 L1"
        return "L0 L2" if self.loss <= L2 else "L0"


def compare(run: Run, oracle: Oracle) -> Difference:
    """Samples, losses and final weights of a finished run beside those of the oracle."""
    found = run.record()
    wanted = oracle.record
    due: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    worst = 0.0
    # Stock trains one more step each time it resumes a finished run; that is not counted.
    is_beyond = run.setup.side == "hf" and len(found.steps) > len(wanted.steps)
    is_l0 = found.steps.keys() == wanted.steps.keys() or is_beyond
    is_l1 = is_l0 and (is_beyond or run.weights() == oracle.weights)
    for step in wanted.steps:
        due.update(wanted.rows(step))
        if step not in found.steps:
            continue
        trained.update(found.rows(step))
        is_l0 = is_l0 and found.rows(step) == wanted.rows(step)
        is_l1 = is_l1 and found.losses(step) == wanted.losses(step)
        loss = wanted.mean_loss(step)
        worst = max(worst, abs(found.mean_loss(step) - loss) / abs(loss))
    lost = sum((due - trained).values())
    repeated = sum((trained - due).values())
    return Difference(lost, repeated, is_l0, is_l0 and is_l1, worst)
