"""Prove from files alone which tokens a run was trained on, or name the first step that is wrong.

The ledger records the samples of each step, and the digest of the tokens that the ranks passed to
the model. The order of the samples is a function of (seed, store, index), and a bijection in every
epoch. If the samples of the steps follow each other from 0 on without gap or overlap, and every
digest equals the digest of the store's tokens, then each sample was trained exactly once per epoch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wikillm.checkpoints.lineage import arrange
from wikillm.checkpoints.manifest import read_state
from wikillm.core.errors import CheckpointError, DataError
from wikillm.data.read.corpus import Corpus, Order
from wikillm.data.read.rows import sample_rows
from wikillm.data.store.store import TokenStream
from wikillm.ledger.corpus import corpus_of_run
from wikillm.ledger.digest import row_hashes, row_keys
from wikillm.ledger.record import NAME, History, SkippedWindow, StepLine, read_ledger

_ROWS_AT_A_TIME = 1024
_SAMPLES_AT_A_TIME = 1 << 16
_NEAR = 8  # number of batches before and after a wrong step that are searched for its tokens


@dataclass(frozen=True, slots=True)
class WrongStep:
    """A step that fails the audit. `kind`: record, lost, repeated, tokens or checkpoint."""

    step: int
    kind: str
    text: str


@dataclass(slots=True)
class Audit:
    """The result of an audit of the steps from `first_step` to `last_step`.

    Attributes:
        first, stop: the samples [first, stop) of these steps.
        superseded: number of step lines that later segments supersede.
        seconds: time spent comparing tokens.
        skipped: windows that the run skipped and recorded.
    """

    run: str
    first_step: int
    last_step: int
    first: int
    stop: int
    samples: int = 0
    segments: int = 0
    superseded: int = 0
    checkpoints: int = 0
    tokens_compared: int = 0
    seconds: float = 0.0
    epochs: str = ""
    skipped: list[SkippedWindow] = field(default_factory=list)
    wrong: list[WrongStep] = field(default_factory=list)

    @property
    def is_proven(self) -> bool:
        return not self.wrong

    def to_json(self) -> dict[str, Any]:
        skipped = [window.to_json() for window in self.skipped]
        return {"proven": self.is_proven, **asdict(self), "skipped": skipped}


def audit_run(
    run: Path,
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    with_tokens: bool = True,
    stores: Sequence[str] = (),
) -> Audit:
    """Audit the ledger of a run, in full or from `first_step` to `last_step`.

    Args:
        with_tokens: also compare the digests with the tokens in the store.
        stores: see `places` of `corpus_of_run`.

    Raises:
        CheckpointError: the ledger is missing, is damaged or does not have these steps.
        DataError, ConfigError: see `corpus_of_run`.
    """
    history = History.of(read_ledger(run / NAME))
    begin = first_step or 1
    steps = [
        line
        for line in history.steps
        if begin <= line.step and (last_step is None or line.step <= last_step)
    ]
    if not steps:
        has = f"steps {history.steps[0].step} to {history.steps[-1].step}" if history.steps else ""
        raise CheckpointError(
            "The ledger has none of these steps.", got=f"{run / NAME} has {has or 'no steps'}"
        )
    # The samples begin where the step before them ends. If it has no record, the first audited
    # step decides, and the audit says nothing about earlier samples.
    first = steps[0].first if begin > 1 else 0
    first = next((line.stop for line in history.steps if line.step == begin - 1), first)
    audit = Audit(
        run=str(run),
        first_step=begin,
        last_step=last_step or steps[-1].step,
        first=first,
        stop=steps[-1].stop,
        samples=sum(line.stop - line.first for line in steps),
        segments=len(history.segments),
        superseded=history.superseded,
    )
    audit.wrong += _check_ranges(audit, history, steps)
    audit.wrong += _check_checkpoints(audit, run, history)
    if with_tokens:
        audit.wrong += _compare_tokens(audit, run, history, steps, stores)
    audit.wrong.sort(key=lambda wrong: wrong.step)
    return audit


def _check_ranges(audit: Audit, history: History, steps: list[StepLine]) -> Iterator[WrongStep]:
    """Check that each step begins at the end of the step before it or of a skipped window."""
    orders = {str(sorted(segment.order.items())) for segment in history.segments}
    if len(orders) > 1:
        text = "the segments have different orders of the samples"
        yield WrongStep(steps[0].step, "record", text)
    # Walk over the steps; `position` is the first sample that no earlier step or window has.
    windows = {window.first: window for window in history.skipped}
    position = audit.first
    next_step = audit.first_step
    for line in steps:
        if line.step > next_step:
            missing = f"no record of steps {next_step:,} to {line.step - 1:,}"
            yield WrongStep(next_step, "record", f"{missing}: lines or a whole ledger are missing")
            position = line.first
        elif line.step < next_step or line.stop <= line.first:
            yield WrongStep(line.step, "record", "it is recorded twice, or without samples")
        while position in windows and position < line.first:
            audit.skipped.append(windows[position])
            position = windows[position].stop
        if line.first > position:
            text = f"samples {position:,} to {line.first - 1:,} were not trained"
            yield WrongStep(line.step, "lost", text)
        elif line.first < position:
            text = f"samples {line.first:,} to {min(position, line.stop) - 1:,} were trained again"
            yield WrongStep(line.step, "repeated", text)
        position = line.stop
        next_step = line.step + 1
    if next_step <= audit.last_step:
        text = f"no record of steps {next_step:,} to {audit.last_step:,}"
        yield WrongStep(next_step, "record", text)


def _check_checkpoints(audit: Audit, run: Path, history: History) -> Iterator[WrongStep]:
    """Check that checkpoints of the current branch have the ledger's number of samples."""
    stops = {line.step: line.stop for line in history.steps}
    ends = {window.first: window.stop for window in history.skipped}
    for folder in arrange(run / "checkpoints").branch:
        try:
            state = read_state(folder)
            step = state["step"]
            consumed = state["consumed_samples"]
        except (CheckpointError, KeyError):
            continue  # a damaged checkpoint is reported elsewhere, when it is named or resumed
        if not audit.first_step <= step <= audit.last_step:
            continue
        audit.checkpoints += 1
        stop = stops.get(step)
        if stop is None:
            text = f"{folder.name} exists, but its step has no record"
            yield WrongStep(step, "record", text)
        elif consumed not in (stop, ends.get(stop)):
            text = f"{folder.name} has {consumed:,} consumed samples, the ledger has {stop:,}"
            yield WrongStep(step, "checkpoint", text)


def _compare_tokens(
    audit: Audit, run: Path, history: History, steps: list[StepLine], stores: Sequence[str]
) -> Iterator[WrongStep]:
    """Compare each digest with that of the store's tokens; stop at the first difference."""
    # Open the store of the run, whose shards are compared with their sha256 at first use.
    values = history.segments[-1].order
    corpus = corpus_of_run(run, values, stores)
    order = corpus.order(values["sequence_length"], values["seed"])
    audit.epochs = _epochs(corpus, values, audit.stop)
    corpus.train.verify_on_first_use()
    since = time.perf_counter()
    for portion in _portions(steps):
        digests, damage = _digests_until_damage(corpus.train, order, portion)
        if damage is not None:
            yield damage
        pairs = list(zip(portion, digests, strict=False))
        wrong = next((line for line, digest in pairs if line.digest != digest), None)
        if wrong is not None:
            yield _explain(corpus.train, order, wrong)
        compared = pairs if wrong is None else pairs[: portion.index(wrong)]
        audit.tokens_compared += order.sequence_length * sum(s.stop - s.first for s, _ in compared)
        if len(compared) < len(portion):
            break
    audit.seconds = time.perf_counter() - since


def _digests_until_damage(
    tokens: TokenStream, order: Order, steps: list[StepLine]
) -> tuple[list[int], WrongStep | None]:
    """The expected digests up to the first step that needs a damaged shard, and that step."""
    with suppress(DataError):
        return expected_digests(tokens, order, steps), None
    digests: list[int] = []
    for line in steps:
        try:
            digests += expected_digests(tokens, order, [line])
        except DataError as error:
            return digests, WrongStep(line.step, "tokens", str(error.got))
    return digests, None


def _portions(steps: list[StepLine]) -> Iterator[list[StepLine]]:
    """Split steps into groups of about `_SAMPLES_AT_A_TIME` samples, at least one step each."""
    portion: list[StepLine] = []
    size = 0
    for line in steps:
        portion.append(line)
        size += line.stop - line.first
        if size >= _SAMPLES_AT_A_TIME:
            yield portion
            portion = []
            size = 0
    if portion:
        yield portion


def expected_digests(tokens: TokenStream, order: Order, steps: Sequence[StepLine]) -> list[int]:
    """The digest of each step, if it consumed exactly its recorded samples."""
    sizes = np.array([max(0, line.stop - line.first) for line in steps])
    samples = np.concatenate([np.arange(line.first, line.stop) for line in steps])
    rows = np.concatenate([np.arange(size) for size in sizes])
    hashes = np.empty(len(samples), dtype=np.uint64)
    for start in range(0, len(samples), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        inputs, targets, _ = sample_rows(tokens, order, samples[part])
        hashes[part] = row_hashes(inputs, targets)
    sums = np.cumsum(np.append(np.uint64(0), hashes * row_keys(0, int(sizes.max()))[rows]))
    ends = np.append(0, np.cumsum(sizes))
    digests: list[int] = np.diff(sums[ends]).tolist()  # exact modulo 2^64, like the sums
    return digests


def _explain(tokens: TokenStream, order: Order, wrong: StepLine) -> WrongStep:
    """Describe a step with a wrong digest: find its tokens in the batches near it, if possible."""
    size = wrong.stop - wrong.first
    own = f"not those of its samples {wrong.first:,} to {wrong.stop - 1:,}"
    for batches in sorted(range(-_NEAR, _NEAR + 1), key=abs):
        first = wrong.first + batches * size
        if batches == 0 or first < 0:
            continue
        moved = wrong._replace(first=first, stop=first + size)
        with suppress(DataError, IndexError):
            if expected_digests(tokens, order, [moved]) == [wrong.digest]:
                kind = "repeated" if batches < 0 else "lost"
                taken = f"it was given the tokens of samples {first:,} to {moved.stop - 1:,}"
                return WrongStep(wrong.step, kind, f"{taken}, {own}")
    text = f"it was given other tokens, {own}. The shards match the manifest, so the store was "
    text += "built again since, ranks read each other's samples, or memory was damaged"
    return WrongStep(wrong.step, "tokens", text)


def _epochs(corpus: Corpus, values: dict[str, Any], samples: int) -> str:
    """The number of epochs in the first `samples` samples, as text; by source in a mixture."""
    if corpus.mixture:
        used = corpus.order(values["sequence_length"], values["seed"]).sources_used(samples)
        return ", ".join(f"{source.name} {source.epochs:.2f}" for source in used) + " epochs"
    sizes = corpus.epoch_sizes(values["sequence_length"])
    assert sizes is not None, "a finished store knows its size"
    first, later = sizes
    passes = samples / first if samples <= first else 1 + (samples - first) / later
    return f"{passes:.2f} epochs"
