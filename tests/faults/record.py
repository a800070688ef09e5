"""What the ranks of a run recorded at each step, over all its starts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


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
