"""A global batch that starts at `train.batch_ramp_from` tokens and doubles in equal shares.

A batch below the critical size loses nothing and takes more steps from the same tokens; the
critical size grows while the loss falls (McCandlish et al. 2018, arXiv:1812.06162). The stages
follow from the configuration alone, so they do not depend on the number of ranks. Sizes are in
sequences, steps are counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from wikillm.config.origin import Origin, where_of
from wikillm.config.schema import TrainSection
from wikillm.core.errors import Problems

KEYS = ("train.batch_ramp_from", "train.batch_ramp_tokens")


@dataclass(frozen=True, slots=True)
class BatchRamp:
    """`stages` of (steps, sequences per step), then `full` sequences per step to the end.

    `lead`, without stages: sequences by which the steps before a resume with another batch are
    ahead of `full` ones (below 0: behind). Of such steps only their sum is known.
    """

    full: int
    stages: tuple[tuple[int, int], ...] = ()
    lead: int = 0

    @property
    def steps(self) -> int:
        """Steps before the first full batch."""
        return sum(steps for steps, _ in self.stages)

    def sequences_at(self, step: int) -> int:
        """Sequences in the global batch of `step`."""
        for steps, sequences in self.stages:
            if step < steps:
                return sequences
            step -= steps
        return self.full

    def sequences_before(self, step: int) -> int:
        """Sequences in the global batches of all steps before `step`."""
        total = self.lead
        for steps, sequences in self.stages:
            total += min(step, steps) * sequences
            step = max(0, step - steps)
        return total + step * self.full

    def sizes(self, steps: int) -> list[tuple[int, int]]:
        """The first `steps` steps as (steps, sequences per step)."""
        found = []
        for length, sequences in (*self.stages, (steps, self.full)):
            if (taken := min(length, steps)) > 0:
                found.append((taken, sequences))
            steps -= taken
        return found

    def steps_for(self, sequences: int) -> int:
        """The smallest number of steps that trains on at least so many sequences."""
        sequences = max(0, sequences - self.lead)
        done = 0
        for steps, size in self.stages:
            if sequences <= steps * size:
                return done + -(-sequences // size)
            sequences -= steps * size
            done += steps
        return done + -(-sequences // self.full)

    def after(self, steps: int, sequences: int) -> BatchRamp:
        """The same from here on, when the first `steps` steps have used up so many sequences."""
        return self if self.stages else replace(self, lead=sequences - steps * self.full)

    def describe(self) -> str:
        """For a checkpoint: `8 x 100, 16 x 50 steps`, or `off`."""
        stages = ", ".join(f"{sequences} x {steps}" for steps, sequences in self.stages)
        return f"{stages} steps" if stages else "off"


def batch_ramp(train: TrainSection, full: int) -> BatchRamp:
    """The ramp of a checked configuration. `full`: sequences in the global batch at the end."""
    if train.batch_ramp_from is None or train.batch_ramp_tokens is None:
        return BatchRamp(full)
    first = train.batch_ramp_from // train.sequence_length
    doublings = (full // first).bit_length() - 1
    sizes = [first << stage for stage in range(doublings)]
    # Sequences per stage, rounded up.
    share = -(-train.batch_ramp_tokens // (doublings * train.sequence_length))
    return BatchRamp(full, tuple((-(-share // size), size) for size in sizes))


def check_batch_ramp(
    train: TrainSection, origins: Mapping[str, Origin], problems: Problems
) -> None:
    """Both keys or none, and a first batch that doubles to the full one."""
    first = train.batch_ramp_from
    full = train.global_batch_tokens
    given = [key for key in KEYS if getattr(train, key.removeprefix("train.")) is not None]
    if not given:
        return
    got = where_of(origins, *given)
    if first is None or train.batch_ramp_tokens is None:
        missing = KEYS[0] if first is None else KEYS[1]
        problems.add(f"A batch ramp needs {missing} as well.", got=got, fix="set both, or neither")
        return
    if full is None:
        what = "A batch ramp ends at train.global_batch_tokens, which is not set."
        problems.add(what, got=got, fix=f"train.global_batch_tokens={8 * first}, or no ramp")
        return
    length = train.sequence_length
    legal = _batches_that_double_to(full, length)
    if first not in legal:
        nearest = sorted(sorted(legal, key=lambda size: abs(size - first))[:3])
        listed = ", ".join(map(str, nearest))
        problems.add(
            f"batch_ramp_from={first} does not double to global_batch_tokens={full} "
            f"in whole sequences of {length}.",
            got=where_of(origins, KEYS[0], "train.global_batch_tokens", "train.sequence_length"),
            fix=f"{KEYS[0]}, one of: {listed}" if listed else "another train.global_batch_tokens",
        )


def _batches_that_double_to(full: int, length: int) -> list[int]:
    """Batches of whole sequences, in tokens."""
    found = []
    while full % (2 * length) == 0:
        full //= 2
        found.append(full)
    return found
