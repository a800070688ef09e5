"""Start tiny runs, kill them, resume them, and compare with a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from harness.corpus import write_corpus
from harness.programs import tensor_digest
from harness.ranks import run_ranks, start_ranks
from harness.tiny_run import tiny_words

from faults import programs
from wikillm.config.load import load
from wikillm.data.prepare.prepare import prepare_store

STEPS = 12
SAVE_STEPS = 2
KEEP = 3
MICRO_BATCH = 2
FOLLOW_SECONDS = 10.0  # in which the other ranks must end after one that failed
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
class Ended:
    """How a rank ended. `code` is None when the rig had to end it, and negative for a signal."""

    code: int | None
    message: str
    output: str = ""


class Job:
    """Ranks that have been started."""

    def __init__(self, program: Callable[..., Any], world: int, *args: Any) -> None:
        self.began = time.time()
        self._channels, self._processes = start_ranks(program, world, args, {})
        self.pids = [process.pid or 0 for process in self._processes]

    def kill(self, ranks: list[int], *, with_children: bool = False) -> None:
        """SIGKILL to these ranks, and to their agents and loaders if asked for."""
        self.send(signal.SIGKILL, ranks, with_children=with_children)

    def send(self, number: int, ranks: list[int], *, with_children: bool = False) -> None:
        pids = [self.pids[rank] for rank in ranks]
        children = [child for pid in pids for child in _children(pid)] if with_children else []
        for pid in (*pids, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def wait_for_end(self, timeout: float) -> None:
        """Wait until no rank runs, at most this long."""
        deadline = time.monotonic() + timeout
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.01)

    def wait_for_death(self, rank: int, timeout: float = 60.0) -> bool:
        """Whether this rank has been killed by SIGKILL, and did not end otherwise."""
        self._processes[rank].join(timeout)
        return self._processes[rank].exitcode == -signal.SIGKILL

    def end(self, timeout: float = 120.0) -> list[Ended]:
        """Wait for all ranks. Like a launcher, end the others some time after one that failed."""
        ended: dict[int, Ended] = {}
        waiting = dict(zip(self._channels, range(len(self._channels)), strict=True))
        deadline = time.monotonic() + timeout
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for channel in ready:
                rank = waiting.pop(channel)  # type: ignore[arg-type]
                ended[rank] = self._ended(channel, rank)
                if ended[rank].code != 0:
                    deadline = min(deadline, time.monotonic() + FOLLOW_SECONDS)
        for process in self._processes:
            process.join(timeout=5 if len(ended) == len(self._processes) else 0)
            process.kill()
            process.join(timeout=5)
        for channel in self._channels:
            channel.close()
        late = Ended(None, "it did not end")
        return [ended.get(rank, late) for rank in range(len(self._processes))]

    def _ended(self, channel: Any, rank: int) -> Ended:
        try:
            kind, result = channel.recv()
        except EOFError:
            self._processes[rank].join(5)
            return Ended(self._processes[rank].exitcode, "it ended without a message")
        return Ended(**result) if kind == "ok" else Ended(1, str(result))


def _children(pid: int) -> list[int]:
    """All processes below `pid`."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found + [below for child in found for below in _children(child)]


@dataclass(slots=True)
class Record:
    """What the ranks recorded at each step: samples, losses and times, by start and step."""

    steps: dict[int, dict[int, tuple[tuple[str, ...], tuple[str, ...]]]] = field(
        default_factory=dict
    )
    first: dict[int, tuple[int, float]] = field(default_factory=dict)  # by start: step and time
    last: dict[int, int] = field(default_factory=dict)  # by start: the last step it computed
    ended: float = 0.0

    def rows(self, step: int) -> tuple[str, ...]:
        """The samples of a step over all ranks, sorted."""
        return tuple(sorted(row for rows, _ in self.steps[step].values() for row in rows))

    def losses(self, step: int) -> dict[int, tuple[str, ...]]:
        return {rank: losses for rank, (_, losses) in self.steps[step].items()}

    def mean_loss(self, step: int) -> float:
        """Over ranks and micro-steps. A rank's losses of a step sum to its share of the mean."""
        losses = [float.fromhex(each) for part in self.losses(step).values() for each in part]
        return sum(losses) / len(self.steps[step])


def read_record(folder: Path) -> Record:
    """Of several starts that computed a step, the last one counts: its weights went on."""
    record = Record()
    for start in sorted({int(path.name.split(".")[0]) for path in folder.glob("*.jsonl")}):
        fresh: dict[int, dict[int, tuple[tuple[str, ...], tuple[str, ...]]]] = {}
        for path in folder.glob(f"{start}.*.jsonl"):
            for line in path.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    continue  # being written
                entry = json.loads(line)
                step = entry["step"]
                rows, losses = fresh.setdefault(step, {}).get(entry["rank"], ((), ()))
                whole = ((*rows, *entry["rows"]), (*losses, entry["loss"]))
                fresh[step][entry["rank"]] = whole
                found = (step, entry["time"])
                record.first[start] = min(record.first.get(start, found), found)
                record.last[start] = max(record.last.get(start, -1), step)
                record.ended = max(record.ended, entry["time"])
        record.steps |= fresh
    return record


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
