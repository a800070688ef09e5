"""Build a token store: tokenizer, shards, manifest. One process builds at a time.

The shards are cut by one reader from the stream of records (`sources.read`) and built by worker processes; each is
on the disk, whole, before its record is. A build that was killed goes on at the first missing shard, reading from
where the shards before it ended. The result has the same bytes for any number of workers and interruptions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from wikillm.core.errors import DataError, MachineError
from wikillm.core.files import STAGING_SUFFIX, nearest_existing, write_json
from wikillm.core.lock import FileLock
from wikillm.core.log import say
from wikillm.core.units import format_size
from wikillm.data.filters.documents import TOO_LONG
from wikillm.data.funnel import merged
from wikillm.data.prepare.finish import finish_store
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.prepare.shard import shard_record_path
from wikillm.data.prepare.tokenizer import store_tokenizer
from wikillm.data.prepare.tokenizer_report import report_on_trained
from wikillm.data.sources.bz2_streams import MAX_STREAM, has_many_streams
from wikillm.data.sources.fixes import set_aside
from wikillm.data.sources.read import LINES, Cursor, RawShard, estimated_bytes, read_shards
from wikillm.data.sources.streams import file_and_line
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, ShardInfo, refuse_other_facts
from wikillm.data.store.store import COMMITTED_NAME, INDEX, SPLITS, TOKEN, shard_path
from wikillm.data.tokenizer.encoders import (
    BackendDiffers,
    choose_backend,
    refuse_backend,
    refused_backends,
)
from wikillm.data.tokenizer.tokenizer import TextTokenizer
from wikillm.data.workers.exclusive import exclusive
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress, Work

_BAD_CHECK_RECORDS = 1000  # the share of bad records is judged from here on, and at the end
_BAD_CHECK_BYTES = 64 << 20  # and the share of their bytes
_EXAMPLES = 5


def ensure_store(plan: BuildPlan, *, is_main: bool = True) -> None:
    """Build the store unless it stands; while another process builds it, wait, and share its failure."""
    with exclusive(plan.lock_base, "building the token store", is_main):
        if not (plan.store / MANIFEST_NAME).exists():
            _announce(plan)
            build_store(plan)


def _announce(plan: BuildPlan) -> None:
    kinds = sorted(
        {
            f"{s.format}" + ("" if s.compression == "none" else f" in {s.compression}")
            for s in plan.sources
        }
    )
    size = format_size(sum(source.size for source in plan.sources))
    files = plan.sources[0].path if len(plan.sources) == 1 else f"{len(plan.sources)} files"
    say(f"data: {files}, {size}, {', '.join(kinds)}")
    if plan.threads > 1:
        for source in plan.sources:
            if (
                source.compression == "bz2"
                and source.size > MAX_STREAM
                and not has_many_streams(Path(source.path))
            ):
                say(
                    f"data: {source.path} is one bz2 stream: one core decompresses it (`multistream` dumps take several)"
                )
    if plan.max_text_bytes is not None:
        say(
            f"data: the first {plan.max_text_bytes / 1e6:.3g} MB of text only (data.max_text_bytes)"
        )
    what = "byte-level BPE, " if plan.tokenizer.vocabulary else ""
    say(f"tokenizer: {plan.tokenizer.name} ({what}{plan.tokenizer.origin})")


def build_store(plan: BuildPlan) -> Manifest:
    """Build or go on building. Raises DataError for what the sources hold, MachineError for want of room."""
    tokenizer, backend = make_ready(plan)
    building = _Shards(plan, backend)
    try:
        shards = building.build()
    except BackendDiffers as error:
        refuse_backend(plan.store, backend, error)
        if plan.is_read and building.taken:
            raise _read_already(plan, backend, error) from None
        shards = _Shards(plan, choose_backend("hf", plan.store)).build()
    if not sum(info.text_bytes for info in shards):
        raise plan.nothing_left(merged(info.funnel for info in shards))
    if plan.tokenizer.folder is None:
        report_on_trained(plan.store, tokenizer, shards)
    return finish_store(plan, tokenizer, shards)


def make_ready(plan: BuildPlan) -> tuple[TextTokenizer, str]:
    """All that stands before the first shard: the folder, the tokenizer in it, the encoder by its name."""
    _claim(plan)
    tokenizer = store_tokenizer(plan)
    return tokenizer, choose_backend(plan.backend, plan.store)


def _read_already(plan: BuildPlan, backend: str, error: BackendDiffers) -> DataError:
    return DataError(
        f"The encoder {backend} turned out to differ from tokenizers while a run was training on its shards.",
        got=f"{plan.store}: {error.what} {error.got or ''}".rstrip(),
        fix="data.backend=hf in another run.dir, from step 0: what was trained on is built again, and may change",
    )


def _claim(plan: BuildPlan) -> None:
    """Make the folder ours: refuse one with other content, clear what a killed build left half-written."""
    marker = plan.store / "build.json"
    if marker.exists():
        refuse_other_facts(plan.store, _facts_of(marker), plan.facts)
    elif plan.store.is_dir() and any(
        not path.name.endswith(STAGING_SUFFIX) for path in plan.store.iterdir()
    ):
        raise DataError(
            "The folder in data.store is neither empty nor a token store.",
            got=str(plan.store),
            fix="name another folder in data.store, or leave data.store out",
        )
    _refuse_if_it_does_not_fit(plan)
    try:
        plan.store.mkdir(parents=True, exist_ok=True)
        write_json(
            marker, {"fingerprint": plan.fingerprint, "facts": plan.facts}
        )  # before anything else is in it
    except OSError as error:
        raise MachineError(
            "The folder of the token store cannot be written.",
            got=f"{plan.store}: {error.strerror}",
            fix="data.store=FOLDER that can be written",
        ) from None
    nobody_else = FileLock(plan.crew_lock)  # others may be building parts of it (data.parts)
    is_alone = nobody_else.try_acquire()
    for folder in (plan.store, *(plan.store / name for name in (*SPLITS, "shards", "tokenizer"))):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if is_alone and path.name.endswith(STAGING_SUFFIX):
                path.unlink(missing_ok=True)
    nobody_else.release()


def _facts_of(marker: Path) -> dict[str, Any]:
    """What the folder of a build was begun from."""
    try:
        facts = json.loads(marker.read_text(encoding="utf-8"))["facts"]
        if isinstance(facts, dict):
            return facts
        got = f"{marker}: its facts are not an object"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        got = f"{marker}: {type(error).__name__}: {error}"
    raise DataError("The record of a build is damaged.", got=got, fix=set_aside(marker.parent))


def _refuse_if_it_does_not_fit(plan: BuildPlan) -> None:
    need = plan.predicted_bytes()
    done = sum(path.stat().st_size for split in SPLITS for path in (plan.store / split).glob("*.*"))
    place = plan.store if plan.store.is_dir() else nearest_existing(plan.store)
    free = shutil.disk_usage(place).free
    if need - done > free:
        raise MachineError(
            "The token store will not fit on this disk.",
            got=f"about {format_size(need - done)} are needed in {plan.store}, {format_size(free)} are free",
            fix="data.store=FOLDER on a larger disk, or data.max_text_bytes=SIZE to use the beginning only",
        )
    say(f"store: {plan.store}, about {format_size(need)} at most ({format_size(free)} free)")


class _Shards:
    """Builds the missing shards and takes all of them, in order."""

    def __init__(self, plan: BuildPlan, backend: str) -> None:
        self._plan = plan
        self._job = plan.shard_job(backend)
        self._taken: list[ShardInfo] = []
        self._text_bytes = self._bad_records = self._read_records = 0
        self._bad_bytes = self._read_bytes = 0  # of the sources, decompressed
        self._disk_read = 0
        self._position = 0  # decompressed bytes read
        self._disk_size = sum(source.size for source in plan.sources)
        self._progress = Progress("tokens", estimated_bytes(plan.sources), self._share, plan.relay)

    @property
    def taken(self) -> int:
        """Shards that are final: others may have read them."""
        return len(self._taken)

    def build(self) -> list[ShardInfo]:
        done = finished_shards(self._plan.store)
        cursor, is_full = Cursor(), False
        while (
            not is_full
            and (info := done.get(len(self._taken))) is not None
            and info.start == cursor
        ):
            is_full = self._take(info)
            cursor = info.end
        if self._taken:
            say(
                f"{len(self._taken)} shards of an earlier build are complete; it goes on from there"
            )
        if not is_full:
            self._build_from(cursor, done)
        self._progress.finish()
        self._judge_bad_records(at_end=True)
        self._remove_beyond(len(self._taken))
        return self._taken

    def _build_from(self, cursor: Cursor, done: dict[int, ShardInfo]) -> None:
        plan = self._plan
        limit, number = plan.max_document_bytes, len(self._taken)
        raws = read_shards(
            plan.sources, plan.shard_bytes, limit, cursor, number, self._on_read, plan.threads
        )
        skipped: dict[int, ShardInfo] = {}

        def missing() -> Iterator[RawShard]:
            for raw in raws:
                self._position = raw.end.position
                earlier = done.get(raw.number)
                if earlier is not None and (earlier.start, earlier.end) == (raw.start, raw.end):
                    skipped[raw.number] = earlier
                else:
                    yield raw

        with closing(
            run_jobs(self._job, missing(), plan.workers, self._on_work, self._progress.tick)
        ) as results:
            for info in results:
                while (earlier := skipped.pop(len(self._taken), None)) is not None:
                    if self._take(earlier):
                        return
                if self._take(info):
                    return
        while (earlier := skipped.pop(len(self._taken), None)) is not None:
            if self._take(earlier):
                return

    def _take(self, info: ShardInfo) -> bool:
        """Add the next shard; True when no more is wanted (data.max_text_bytes)."""
        limit = self._plan.max_text_bytes
        if limit is not None and self._text_bytes + info.text_bytes > limit:
            info = self._cut(info, limit - self._text_bytes)
        self._taken.append(info)
        self._text_bytes += info.text_bytes
        self._bad_records += info.funnel.bad_records
        self._read_records += info.funnel.read_records
        self._bad_bytes += info.funnel.bad_bytes
        self._read_bytes += info.end.position - info.start.position
        self._judge_bad_records(at_end=False)
        write_json(self._plan.store / COMMITTED_NAME, {"shards": len(self._taken)})
        return limit is not None and (info.is_cut or self._text_bytes >= limit)

    def _cut(self, info: ShardInfo, budget: int) -> ShardInfo:
        """Build a shard again, with the first `budget` bytes of its text only."""
        plan = self._plan
        raws = read_shards(
            plan.sources, plan.shard_bytes, plan.max_document_bytes, info.start, info.number
        )
        with closing(raws):
            return replace(self._job, text_budget=budget)(next(raws), lambda work: None)

    def _judge_bad_records(self, at_end: bool) -> None:
        """Raise DataError when too much could not be read, in records or in bytes of the sources."""
        most = self._plan.max_bad_fraction
        share = self._bad_records / max(1, self._read_records)
        text = min(1.0, self._bad_bytes / max(1, self._read_bytes))
        by_records = share > most and (at_end or self._read_records >= _BAD_CHECK_RECORDS)
        by_text = text > most and (at_end or self._read_bytes >= _BAD_CHECK_BYTES)
        if not by_records and not by_text:
            return
        self._progress.finish()
        funnel = merged(info.funnel for info in self._taken)
        lines = [
            f"{line.records:>8,}  {line.reason} ({format_size(line.characters)})"
            for line in funnel.dropped
            if line.is_bad
        ]
        what = f"{self._bad_records:,} of {self._read_records:,} records cannot be read"
        what += "" if by_records else f", and they are {text:.1%} of the bytes"
        fix = f"mend the source, or go on without them: data.max_bad_fraction={_rounded_up(max(share, text))}"
        too_long = sum(
            line.characters for line in funnel.dropped if line.is_bad and line.reason == TOO_LONG
        )
        if too_long:
            fix = f"data.max_document_bytes={min(too_long, 2**32 - 1)}\nor {fix}"
        raise DataError(
            f"{what}: more than data.max_bad_fraction={most:g}.",
            got="\n".join([*lines, *self._examples()]),
            fix=fix,
        )

    def _examples(self) -> list[str]:
        found: list[str] = []
        for info in self._taken:
            for bad in json.loads(
                shard_record_path(self._plan.store, info.number).read_text(encoding="utf-8")
            )["bad"]:
                if len(found) == _EXAMPLES:
                    return found
                source = self._plan.sources[bad["source"]]
                where = f"{source.path}: byte {bad['offset']}"
                if source.format in (*LINES, "csv", "blocks"):
                    where = file_and_line(source, bad["offset"])
                detail = f": {bad['detail']}" if bad["detail"] else ""
                found.append(f"{where}: {bad['reason']}{detail}: {bad['head'][:60]!r}")
        return found

    def _remove_beyond(self, count: int) -> None:
        """Shards that were built ahead of the one where data.max_text_bytes was reached."""
        for path in (self._plan.store / "shards").glob("*.json"):
            number = int(path.stem)
            if number >= count:
                path.unlink()
                for split in SPLITS:
                    for kind in ("tok", "idx"):
                        shard_path(self._plan.store, split, number, kind).unlink(missing_ok=True)

    def _on_read(self, size: int) -> None:
        self._disk_read += size

    def _on_work(self, work: Work) -> None:
        self._progress.add(work)

    def _share(self) -> float:
        """How much of the build is done: of the source, or of the text that is wanted."""
        total = estimated_bytes(self._plan.sources)
        if (
            self._disk_read
            and self._position
            and any(s.compression != "none" for s in self._plan.sources)
        ):
            total = int(self._position * self._disk_size / self._disk_read)
        share = self._progress.source_bytes / max(1, total)
        limit = self._plan.max_text_bytes
        return share if limit is None else max(share, self._progress.text_bytes / limit)


def finished_shards(store: Path) -> dict[int, ShardInfo]:
    """The shards whose record is there, whose files have the size it says, and whose encoder was not refused."""
    found: dict[int, ShardInfo] = {}
    refused = refused_backends(store)
    for path in (store / "shards").glob("*.json"):
        try:
            info = ShardInfo.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            continue
        sizes = (
            (shard_path(store, split, info.number, kind), size)
            for split, part in info.splits.items()
            for kind, size in (
                ("tok", part.tokens * TOKEN.itemsize),
                ("idx", part.documents * INDEX.itemsize),
            )
        )
        if info.backend not in refused and all(
            file.is_file() and file.stat().st_size == size for file, size in sizes
        ):
            found[info.number] = info
    return found


def _rounded_up(share: float) -> float:
    return min(1.0, -(-share * 1000 // 1) / 1000)
