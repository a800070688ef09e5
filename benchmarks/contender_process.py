"""The processes of benchmarks/train.py: each contender trains in its own, one step per order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import REPO, import_path


@dataclass(frozen=True)
class Shape:
    """A model preset or, on CPU, single fields; B sequences of T tokens."""

    name: str
    words: tuple[str, ...]
    batch: int
    length: int


class Contender:
    """A process that trains; `step()` lets it do one and returns what that took."""

    def __init__(
        self, name: str, shape: Shape, folder: Path, steps: int, profiled: int, stretch: int
    ) -> None:
        self.name = name
        self.steps = steps
        reader, writer = os.pipe()
        order = {
            "name": name,
            "words": words_of(shape, folder, name),
            "steps": steps,
            "fd": writer,
            "profiled": profiled,
            "stretch": stretch,
        }
        environ = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": import_path(),
        }
        self._log = open(folder / f"{name}.log", "w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[writer],
            env=environ,
            cwd=REPO,
        )
        os.close(writer)
        self._reports = os.fdopen(reader, encoding="utf-8")
        self._read()

    def step(self) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError("a contender without a pipe")
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._reports.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise ChildProcessError(
                f"{self.name} ended with {self._process.returncode}:\n{self._log.read()[-1500:]}"
            )
        return dict(json.loads(line))

    def close(self) -> None:
        """Also waits for its supervisor and workers, which write into the folder removed next."""
        children = []
        if self._process.poll() is None:
            children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for left in psutil.wait_procs(children, timeout=30)[1]:
            left.kill()
        self._reports.close()
        self._log.close()


def words_of(shape: Shape, folder: Path, name: str) -> list[str]:
    """The run as WikiLLM's command line says it; the other contenders read the same."""
    switches = {
        "compiled": "train.compile=layers",
        "elementwise": "train.compile=elementwise",
        "fp8": "train.loss_kernel=fp8",
    }
    parts = name.split("-") if name.startswith("wikillm") else []
    run_dir = tempfile.mkdtemp(prefix=name, dir=folder)  # of this visit
    return [
        *(word for part, word in switches.items() if part in parts),
        f"data.path={folder / 'text.jsonl'}", f"data.store={folder / 'store'}",
        "data.tokenizer=train:260",
        "data.min_val_tokens=100", "data.workers=1", *shape.words,
        f"train.sequence_length={shape.length}",
        f"train.per_device_train_batch_size={shape.batch}",
        f"train.global_batch_tokens={shape.batch * shape.length}",
        "train.max_steps=100000", "train.warmup_steps=0", "train.lr_scheduler_type=constant",
        "train.learning_rate=1e-3", "train.save_steps=100000", "train.max_eval_tokens=100",
        "observe.swanlab.mode=disabled", "observe.sample_prompts=[]", f"run.dir={run_dir}",
    ]  # fmt: skip
