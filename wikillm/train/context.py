"""State that the parts of a run share: `PlannedRun` before the start, then `RunContext`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from wikillm.config.resolved import Resolved, to_yaml
from wikillm.core.files import write_atomic, write_json
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus
from wikillm.observe.peak_memory import PeakMemory
from wikillm.observe.redact import without_queries
from wikillm.plan.checkpoint import checkpoint_bytes
from wikillm.plan.run_plan import Plan
from wikillm.plan.strategy import uses_muon
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.requests import FileRequests
from wikillm.supervise.signals import StopSignals
from wikillm.train.collectives import ControlGroup
from wikillm.train.engine import Engine
from wikillm.train.resume import ResumePoint
from wikillm.train.run_dir import RunDir, describe_environment


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What is known of a run before its process group exists. (all ranks)"""

    resolved: Resolved
    world: World
    run: RunDir
    corpus: Corpus
    plan: Plan
    engine: Engine

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint on the disk."""
        train = self.resolved.config.train
        return checkpoint_bytes(
            self.resolved.config.model,
            self.plan.vocab_size,
            muon=uses_muon(train),
            ema=train.ema_decay > 0,
            ranks=self.world.size,
        )

    def write_start_records(self) -> None:
        """Write the configuration, the plan, the environment and the data of this start. (rank 0)

        A resumed start writes them after its configuration was found to match the checkpoint.
        """
        folder = self.run.path
        write_atomic(folder / "config.resolved.yaml", without_queries(to_yaml(self.resolved)))
        write_json(folder / "plan.json", self.plan.to_json())
        write_json(folder / "environment.json", describe_environment())
        if self.engine.json is not None:
            write_json(folder / "ds_config.resolved.json", self.engine.json)
        self.write_data_record()

    def write_data_record(self) -> None:
        """Write data.json and a copy of the tokenizer: a run can be exported without its store."""
        folder = self.run.path
        write_json(folder / "data.json", self.corpus.describe())
        shutil.copytree(self.corpus.tokenizer_dir, folder / "tokenizer", dirs_exist_ok=True)


@dataclass(frozen=True, slots=True)
class RunContext(PlannedRun):
    """A run whose ranks agree on folder and checkpoint. (all ranks)

    Attributes:
        identity: the run's id and tracker id, from RUN/run.json.
        peak: measures peak memory, from just before the model is built.
        point: the checkpoint to resume from; None at step 0.
    """

    identity: dict[str, Any]
    group: ControlGroup
    signals: StopSignals
    requests: FileRequests
    heartbeat: Heartbeat
    peak: PeakMemory
    point: ResumePoint | None
