"""Build a part of a store's shards on one of several machines that share its folder.

Shards are independent once the start of each is known (`sources.shard_starts`). The first machine
takes a lock, sets up the folder and the tokenizer, and finds the cuts. Then all machines build the
missing shards of their parts at the same time. No part finishes the store: `wikillm prepare`
without `--shards` builds the shards still missing, checks the bad records of all shards and writes
the manifest. So the store has the same bytes as a store that a single machine builds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import write_json
from wikillm.core.lock import FileLock
from wikillm.data.prepare.build import finished_shards, set_up
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.sources.read import Cursor, RawShard
from wikillm.data.sources.shard_starts import find_cuts
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.data.tokenizer.encoders import EncoderDiffers, choose_encoder, refuse_encoder
from wikillm.data.workers.exclusive import beside, exclusive
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress, Work


@dataclass(frozen=True, slots=True)
class Part:
    """A range of shards: `A:B` is A to B - 1; `I/N` is the I-th of N equal parts, from 0."""

    low: int
    high: int
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse `A:B` or `I/N`. Raises ConfigError for any other text."""
        match = re.fullmatch(r"(\d+)([:/])(\d+)", text)
        if match is not None:
            low = int(match[1])
            high = int(match[3])
            if low < high:
                return cls(low, high, match[2] == "/")
        raise ConfigError(
            "--shards must be A:B, the shards from A to B - 1, "
            "or I/N, the I-th of N parts counted from 0.",
            got=repr(text),
            fix="--shards 0:16, or --shards 0/8",
        )

    def of(self, shards: int) -> range:
        """The shard numbers of this part in a store of `shards` shards."""
        if self.is_share:
            return range(shards * self.low // self.high, shards * (self.low + 1) // self.high)
        return range(min(self.low, shards), min(self.high, shards))


def cut_shards(plan: BuildPlan) -> tuple[str, tuple[Cursor, ...]] | None:
    """The encoder of the store, and its cuts: the start of every shard and the end of the last.

    Sets up the folder and finds the cuts, unless a machine has done so. None for a finished store.

    Raises ConfigError if data.max_text_bytes is set: where it ends depends on all earlier shards.
    """
    if plan.max_text_bytes is not None:
        raise ConfigError(
            "A store with data.max_text_bytes cannot be built in parts: "
            "where it ends depends on all earlier shards.",
            got=f"data.max_text_bytes={plan.max_text_bytes}",
            fix="leave out --executor and --shards, or set data.max_text_bytes=null",
        )
    with exclusive(plan.lock_base, "preparing the shards", is_main=True):
        if (plan.store / MANIFEST_NAME).exists():
            return None
        _, encoder = set_up(plan)
        return encoder, _cuts(plan)


def _cuts(plan: BuildPlan) -> tuple[Cursor, ...]:
    """The cuts. They are found once, and kept in a file beside the store."""
    path = beside(plan.lock_base, ".cuts.json")
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["fingerprint"] == plan.fingerprint:
            return tuple(Cursor(*cut) for cut in known["cuts"])
    total = sum(source.size for source in plan.sources)
    progress = Progress("finding the shards", total, relay=plan.relay)
    cuts = find_cuts(plan.reader, lambda size: progress.add(Work(source_bytes=size)))
    progress.finish()
    write_json(path, {"fingerprint": plan.fingerprint, "cuts": [list(astuple(c)) for c in cuts]})
    return cuts


def build_part(plan: BuildPlan, part: Part) -> str:
    """Build the missing shards of a part; return a sentence that says which shards are finished.

    Raises DataError for bad sources, MachineError for a full disk or a killed worker.
    """
    found = cut_shards(plan)
    if found is None:
        return f"{plan.store} is finished"
    encoder, cuts = found
    shards = max(0, len(cuts) - 1)
    numbers = part.of(shards)
    with FileLock(plan.parts_lock, is_shared=True):
        try:
            _build(plan, cuts, encoder, numbers)
        except EncoderDiffers as error:
            with exclusive(plan.lock_base, "refusing an encoder", is_main=False):
                refuse_encoder(plan.store, encoder, error)
                encoder = choose_encoder("hf", plan.store)
            _build(plan, cuts, encoder, numbers)
    done = len(finished_shards(plan.store))
    built = f"shards {numbers.start} to {numbers.stop - 1}" if numbers else "no shards"
    rest = "the same command without --shards finishes the store"
    return f"{plan.store}: {built} are built, {done} of {shards} in all; {rest}"


def _build(plan: BuildPlan, cuts: Sequence[Cursor], encoder: str, numbers: range) -> None:
    """Build the missing shards among `numbers` in worker processes on this machine."""
    done = finished_shards(plan.store)
    missing = [
        n
        for n in numbers
        if n not in done or (done[n].start, done[n].end) != (cuts[n], cuts[n + 1])
    ]
    if not missing:
        return
    progress = Progress("tokens", sum(cuts[n + 1].position - cuts[n].position for n in missing))
    raws = _read(plan, cuts, missing)
    workers = min(plan.workers, len(missing))
    jobs = run_jobs(plan.shard_job(encoder), raws, workers, progress.add, progress.tick)
    with closing(jobs) as results:
        for _ in results:
            pass
    progress.finish()


def _read(plan: BuildPlan, cuts: Sequence[Cursor], missing: Sequence[int]) -> Iterator[RawShard]:
    """Read the records of the missing shards. Adjacent shards are read without a new start."""
    at = 0
    while at < len(missing):
        first = missing[at]
        with closing(plan.reader.read(cuts[first], first)) as raws:
            for raw in raws:
                end = cuts[raw.number + 1]
                if raw.end != end:
                    raise DataError(
                        "A source changed while its shards were built.",
                        got=f"shard {raw.number} ends at {raw.end}, not at {end}",
                        fix="start again once no program writes to the source",
                    )
                yield raw
                at += 1
                if at == len(missing) or missing[at] != raw.number + 1:
                    break
