"""Build a part of a store's shards: what a machine does that shares the folder with others.

Shards are independent once it is known where each begins (`sources.cuts`). Whoever comes first, in its turn, claims the
folder, makes the tokenizer and finds the cuts; everybody then builds the shards of their part that are not there yet,
at the same time. Nobody finishes the store: that is `wikillm prepare` without a part, which finds the shards built,
builds what is missing, judges the bad records of all, and writes the manifest. So the bytes are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import write_json
from wikillm.core.lock import FileLock
from wikillm.data.prepare.build import finished_shards, make_ready
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.sources.cuts import find_cuts
from wikillm.data.sources.read import Cursor, RawShard, read_shards
from wikillm.data.store.manifest import MANIFEST_NAME, ShardInfo
from wikillm.data.tokenizer.encoders import BackendDiffers, choose_backend, refuse_backend
from wikillm.data.workers.exclusive import beside, exclusive
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress, Work


@dataclass(frozen=True, slots=True)
class Part:
    """`A:B`, the shards from A up to and without B, or `I/N`, the I-th of N equal parts, counted from 0."""

    low: int
    high: int
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> Part:
        """Raises ConfigError for anything else."""
        match = re.fullmatch(r"(\d+)([:/])(\d+)", text)
        if match is not None:
            low, high = int(match[1]), int(match[3])
            if low < high:
                return cls(low, high, match[2] == "/")
        raise ConfigError(
            "--shards wants A:B, the shards from A to B - 1, or I/N, the I-th of N parts counted from 0.",
            got=repr(text),
            fix="--shards 0:16, or --shards 0/8",
        )

    def of(self, shards: int) -> range:
        """The numbers of its shards, of so many in all."""
        if self.is_share:
            return range(shards * self.low // self.high, shards * (self.low + 1) // self.high)
        return range(min(self.low, shards), min(self.high, shards))


@dataclass(frozen=True, slots=True)
class Ready:
    """A store whose shards can be built anywhere that sees its folder and the sources."""

    backend: str
    cuts: tuple[Cursor, ...]

    @property
    def shards(self) -> int:
        return max(0, len(self.cuts) - 1)

    def has(self, info: ShardInfo | None, number: int) -> bool:
        """Whether `info` is the finished shard `number` of these cuts."""
        return info is not None and (info.start, info.end) == (
            self.cuts[number],
            self.cuts[number + 1],
        )


def ready_for_parts(plan: BuildPlan, *, is_main: bool = True) -> Ready | None:
    """Claim the folder, make the tokenizer, find the cuts, unless that was done; None when the store is finished.

    Raises ConfigError with data.max_text_bytes: where the text ends is known only in the order of the shards.
    """
    if plan.max_text_bytes is not None:
        raise ConfigError(
            "data.max_text_bytes is decided shard by shard, so it cannot be built in parts.",
            got=str(plan.max_text_bytes),
            fix="leave out --executor and --shards; or data.max_text_bytes=null",
        )
    with exclusive(plan.lock_base, "preparing the shards", is_main):
        if (plan.store / MANIFEST_NAME).exists():
            return None
        _, backend = make_ready(plan)
        return Ready(backend, _cuts(plan))


def _cuts(plan: BuildPlan) -> tuple[Cursor, ...]:
    """Where each shard begins, kept beside the store: it is found once, by one."""
    path = beside(plan.lock_base, ".cuts.json")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["fingerprint"] == plan.fingerprint:
            return tuple(Cursor(*cut) for cut in known["cuts"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    progress = Progress(
        "finding the shards", sum(source.size for source in plan.sources), relay=plan.relay
    )
    cuts = find_cuts(
        plan.sources,
        plan.shard_bytes,
        plan.max_document_bytes,
        lambda size: progress.add(Work(source_bytes=size)),
    )
    progress.finish()
    write_json(
        path,
        {"fingerprint": plan.fingerprint, "cuts": [list(asdict(cut).values()) for cut in cuts]},
    )
    return cuts


def build_part(plan: BuildPlan, part: Part) -> str:
    """Build the missing shards of a part; a sentence on what stands now.

    Raises DataError for what the sources hold, MachineError for want of room or a killed worker.
    """
    ready = ready_for_parts(plan)
    if ready is None:
        return f"{plan.store} is finished"
    numbers = part.of(ready.shards)
    build_shards(plan, ready, numbers)
    done = len(finished_shards(plan.store))
    what = f"shards {numbers.start} to {numbers.stop - 1}" if numbers else "no shards"
    return f"{plan.store}: {what} stand, {done} of {ready.shards} in all; the same command without --shards finishes"


def build_shards(plan: BuildPlan, ready: Ready, numbers: Sequence[int]) -> None:
    """Build those of the shards `numbers` that are not there, in the worker processes of this machine."""
    with FileLock(plan.crew_lock, is_shared=True):
        try:
            _build(plan, ready, ready.backend, numbers)
        except BackendDiffers as error:
            with exclusive(plan.lock_base, "refusing an encoder", is_main=False):
                refuse_backend(plan.store, ready.backend, error)
                backend = choose_backend("hf", plan.store)
            _build(plan, ready, backend, numbers)


def _build(plan: BuildPlan, ready: Ready, backend: str, numbers: Sequence[int]) -> None:
    done = finished_shards(plan.store)
    missing = [n for n in numbers if not ready.has(done.get(n), n)]
    if not missing:
        return
    progress = Progress(
        "tokens", sum(ready.cuts[n + 1].position - ready.cuts[n].position for n in missing)
    )
    job, raws = plan.shard_job(backend), _raws(plan, ready, missing)
    with closing(
        run_jobs(job, raws, min(plan.workers, len(missing)), progress.add, progress.tick)
    ) as results:
        for _ in results:
            pass
    progress.finish()


def _raws(plan: BuildPlan, ready: Ready, missing: Sequence[int]) -> Iterator[RawShard]:
    """The records of the missing shards; neighbours are read in one go, and a gap is passed by seeking."""
    at = 0
    while at < len(missing):
        first = missing[at]
        raws = read_shards(
            plan.sources, plan.shard_bytes, plan.max_document_bytes, ready.cuts[first], first
        )
        with closing(raws):
            for raw in raws:
                if raw.end != ready.cuts[raw.number + 1]:
                    raise DataError(
                        "A source changed while its shards were built.",
                        got=f"shard {raw.number} ends at {raw.end}, not at {ready.cuts[raw.number + 1]}",
                        fix="start again when nobody writes to it",
                    )
                yield raw
                at += 1
                if at == len(missing) or missing[at] != raw.number + 1:
                    break
