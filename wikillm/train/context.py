"""What the parts of a started run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wikillm.config.load import Resolved
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus
from wikillm.observe.peak import PeakMemory
from wikillm.plan.run_plan import Plan
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.signals import StopSignals
from wikillm.train.collectives import ControlGroup
from wikillm.train.engine import Engine
from wikillm.train.run_dir import RunDir


@dataclass(frozen=True, slots=True)
class RunContext:
    """A run whose configuration, data, ranks and folder have been checked. (all ranks)

    Attributes:
        identity: the run's id and tracker id, from RUN/run.json.
        peak: counts memory from the moment before the model was built.
    """

    resolved: Resolved
    plan: Plan
    engine: Engine
    corpus: Corpus
    world: World
    run: RunDir
    identity: dict[str, Any]
    group: ControlGroup
    signals: StopSignals
    heartbeat: Heartbeat
    peak: PeakMemory
