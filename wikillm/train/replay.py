"""Computes steps of a run again, from the checkpoint before them, in a separate directory.

A replay shows whether the result of a step, such as a strange loss, follows from its data. The run
directory is only read. The settings are those of the run's last start. Loss and gradient norm must
be bit-identical on the same number of ranks and the same software; otherwise the loss must agree
within 1e-3 and the norm within 1e-2. This compares the forward pass, the backward pass and the
update of every step, except the last update. Steps with another result are computed twice.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from wikillm.checkpoints.layout import step_of
from wikillm.checkpoints.lineage import arrange
from wikillm.checkpoints.manifest import verify
from wikillm.config.checks import NEEDS
from wikillm.config.load import load
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import CheckpointError, StoppedError
from wikillm.core.log import say
from wikillm.core.world import World
from wikillm.data.fetch.remote import scheme_of
from wikillm.data.inspect.positions import SourcePosition, documents_of
from wikillm.ledger.corpus import corpus_of_run
from wikillm.ledger.record import NAME, History, StepLine, read_ledger
from wikillm.observe import names
from wikillm.observe.sinks import read_metrics
from wikillm.train.resume import Computed, Replay
from wikillm.train.run import pretrain
from wikillm.train.spikes import SKIPS

CLOSE = 1e-3
"""Relative difference of losses on another number of ranks (L2 in docs/guarantees.md)."""
CLOSE_NORM = 1e-2
"""Relative difference of gradient norms on another number of ranks."""
_QUIET = (
    "observe.swanlab.mode=disabled observe.sample_prompts=[] train.save_steps=1000000000 "
    "train.keep_every_steps=null train.keep_best=0 train.eval_steps=null train.max_hours=null "
    "train.spikes=off train.eval_tasks=[] train.self_check=off"
)
_WITHOUT = ("spikes", "eval_tasks")
"""Keys of `train` that a replay switches off; keys that need them return to their defaults."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of computing a step again.

    Attributes:
        line: the step's line in the ledger.
        checkpoint: where the computation started; None for the first step.
        logged: the run's first log at or after the step.
        passes: the same values computed again; two if the first differs from `logged` in any bit.
        same_tokens: whether every computed step had the tokens that the ledger records.
        is_exact: whether the number of ranks is the run's, so that `passes` must equal `logged`.
        documents: the documents in the step's samples.
    """

    line: StepLine
    checkpoint: str | None
    logged: Computed
    passes: Sequence[Computed]
    same_tokens: bool
    is_exact: bool
    documents: Sequence[SourcePosition]

    @property
    def repeats(self) -> bool:
        """Whether all passes of this replay gave the same result."""
        return len(set(self.passes)) == 1

    @property
    def verdict(self) -> str:
        """Cause of the logged values: `tokens`, `data` or `hardware or nondeterminism`."""
        if not self.same_tokens:
            return "tokens"
        again = self.passes[0]
        norms = (again.grad_norm, self.logged.grad_norm)
        is_same = again == self.logged
        if not self.is_exact:
            is_same = math.isclose(again.loss, self.logged.loss, rel_tol=CLOSE)
            if norms[0] is not None and norms[1] is not None:
                is_same = is_same and math.isclose(norms[0], norms[1], rel_tol=CLOSE_NORM)
        return "data" if is_same and self.repeats else "hardware or nondeterminism"


def replay_step(run: Path, step: int, work: Path | None = None) -> Replayed | None:
    """Compute step `step` (from 1) of a run again. (all ranks; None on others than rank 0)

    Args:
        work: a new folder that all nodes share, removed at the end; None picks a temporary one.

    Raises CheckpointError when the ledger does not have the step, or no loss was logged since.
    """
    # The step, and the first log at or after it, which has a loss to compare with.
    history = History.of(read_ledger(run / NAME))
    line = next((each for each in history.steps if each.step == step), None)
    logged = next((e for e in history.steps if e.step >= step and e.loss is not None), None)
    if line is None or logged is None or logged.loss is None:
        raise CheckpointError(
            f"The ledger of {run} has no step {step:,}, or no loss that was logged since.",
            fix=f"name a step up to {history.steps[-1].step:,}" if history.steps else None,
        )
    # The logged loss is a mean since the log before it, or since the start of its segment.
    begins = [each.step for each in history.segments if each.step < step]
    before = [each.step for each in history.steps if each.step < step and each.loss is not None]
    checkpoint = _checkpoint_before(run, max([0, *before, *begins]))
    # Train again in a folder of its own, with the settings of the run's last start.
    replay = Replay(_as_logged(run, logged.step, logged.loss))
    port = os.environ.get("MASTER_PORT", str(os.getpid()))  # the same on all ranks
    name = f"wikillm-replay-{run.resolve().name}-{step}-{port}"
    folder = work or Path(tempfile.gettempdir()) / name
    words = [*_QUIET.split(), *_words_that_reset(), f"run.dir={folder}", *_data_words(run)]
    resolved = load(str(run / "config.resolved.yaml"), words)
    world = World.from_env()
    say(f"replay     step {step:,} from {checkpoint or 'the first step'}, in {folder}")
    try:
        if world.is_main:
            _copy_skips(run, folder)
        with _held_back():
            # The last start may have changed the horizon or batch of its checkpoint.
            changes = step > history.segments[-1].step
            pretrain(
                resolved, resume=str(checkpoint or "never"), allow_change=changes, replay=replay
            )
        if not world.is_main:
            return None
        found = History.of(read_ledger(folder / NAME))
    finally:
        if world.is_main:
            shutil.rmtree(folder, ignore_errors=True)
    # Compare the tokens of every computed step with the ledger, and name the step's documents.
    digests = {each.step: each.digest for each in history.steps}
    values = history.segments[-1].order
    corpus = corpus_of_run(run, values)
    order = corpus.order(values["sequence_length"], values["seed"])
    segment = [each for each in history.segments if each.step < step][-1]
    return Replayed(
        line=line,
        checkpoint=checkpoint.name if checkpoint else None,
        logged=replay.logged,
        passes=replay.passes,
        same_tokens=all(digests[each.step] == each.digest for each in found.steps),
        is_exact=world.size == segment.world,
        documents=documents_of(corpus, order, range(line.first, line.stop)),
    )


def _words_that_reset() -> list[str]:
    """Command-line words that reset the keys which only the switched-off features use."""
    fields = TrainSection.model_fields
    names_of_keys = [name for name, (other, *_) in NEEDS.items() if other in _WITHOUT]
    return [f"train.{name}={json.dumps(fields[name].default)}" for name in names_of_keys]


def _as_logged(run: Path, step: int, loss: float) -> Computed:
    """The logged loss with the metrics' gradient norm; None if not logged, as with Muon."""
    records = read_metrics(run / "metrics.jsonl")
    record = next((each for each in records if each[names.STEP] == step), {})
    norm = record.get(names.GRAD_NORM)
    return Computed(step, loss, norm)


def _copy_skips(run: Path, folder: Path) -> None:
    """Copy the run's skipped windows, so that the replay skips them too."""
    if (run / SKIPS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / SKIPS, folder / SKIPS)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hide the inner run's output, which names a removed folder; print it on failure."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    except StoppedError as error:
        what = error.what.partition(";")[0]
        raise StoppedError(f"{what}; a replay keeps no checkpoint.", fix="start it again") from None
    except BaseException:
        sys.stderr.write(printed.getvalue())
        raise


def _checkpoint_before(run: Path, step: int) -> Path | None:
    """The newest checkpoint of the current branch at or before `step`, verified."""
    for path in arrange(run / "checkpoints").branch:
        if (step_of(path) or 0) <= step:
            verify(path)
            return path
    return None


def _data_words(run: Path) -> list[str]:
    """Command-line words that name the run's store, so that no store is built."""
    data = load(str(run / "config.resolved.yaml")).config.data
    if data.mixture or scheme_of(data.store or ""):
        return []
    store = corpus_of_run(run, History.of(read_ledger(run / NAME)).segments[-1].order).dir
    return ["data.path=null", "data.preset=null", f"data.store={store}"]
