"""Build a token store: tokenizer, shards, manifest. One process builds at a time.

One reader cuts the stream of records into shards (`sources.read`) and worker processes build them.
A shard's files are complete on disk before its record, shards/NNNNN.json, is written. A killed
build resumes at the first missing shard and reads from the end of the shard before it. The store
has the same bytes for any number of workers and interruptions.
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
from wikillm.data.filters.bad_records import BadRecords
from wikillm.data.funnel import merged
from wikillm.data.prepare.finish import finish_store
from wikillm.data.prepare.plan import BuildPlan, predicted_store_bytes
from wikillm.data.prepare.quarantine import bad_examples
from wikillm.data.prepare.tokenizer import store_tokenizer
from wikillm.data.prepare.tokenizer_report import report_on_trained
from wikillm.data.sources.decompress_bz2 import MAX_STREAM, has_many_streams
from wikillm.data.sources.fixes import set_aside
from wikillm.data.sources.read import Cursor, RawShard, estimated_bytes
from wikillm.data.sources.shard_loop import run_shards
from wikillm.data.store.manifest import MANIFEST_NAME, ShardInfo, refuse_other_facts
from wikillm.data.store.store import COMMITTED_NAME, SPLITS, shard_files, shard_path
from wikillm.data.tokenizer.encoders import (
    EncoderDiffers,
    choose_encoder,
    refuse_encoder,
    refused_encoders,
)
from wikillm.data.tokenizer.tokenizer import TextTokenizer
from wikillm.data.workers.exclusive import exclusive
from wikillm.data.workers.progress import Progress


def ensure_store(plan: BuildPlan, *, is_main: bool = True) -> None:
    """Build the store unless it exists; wait if another process is building it. (all ranks)"""
    with exclusive(plan.lock_base, "building the token store", is_main):
        if not (plan.store / MANIFEST_NAME).exists():
            _announce(plan)
            _build(plan)


def _announce(plan: BuildPlan) -> None:
    kinds = {
        source.format
        if source.compression == "none"
        else f"{source.format} in {source.compression}"
        for source in plan.sources
    }
    size = format_size(sum(source.size for source in plan.sources))
    files = plan.sources[0].path if len(plan.sources) == 1 else f"{len(plan.sources)} files"
    say(f"data: {files}, {size}, {', '.join(sorted(kinds))}")
    for source in plan.sources if plan.threads > 1 else ():
        is_large = source.compression == "bz2" and source.size > MAX_STREAM
        if is_large and not has_many_streams(Path(source.path)):
            note = "only one core can decompress it (a `multistream` dump uses several)"
            say(f"data: {source.path} is one bz2 stream: {note}")
    if plan.max_text_bytes is not None:
        size = f"{plan.max_text_bytes / 1e6:.3g} MB"
        say(f"data: the first {size} of text only (data.max_text_bytes)")
    kind = "byte-level BPE, " if plan.tokenizer.vocabulary else ""
    say(f"tokenizer: {plan.tokenizer.name} ({kind}{plan.tokenizer.origin})")


def _build(plan: BuildPlan) -> None:
    """Build the store, or resume an earlier build.

    Raises DataError for bad sources, MachineError for a full disk.
    """
    tokenizer, encoder = set_up(plan)
    build = _Build(plan, encoder)
    try:
        shards = build.run()
    except EncoderDiffers as error:
        refuse_encoder(plan.store, encoder, error)
        if plan.is_read and build.shards:
            raise _shards_were_read(plan, encoder, error) from None
        shards = _Build(plan, choose_encoder("hf", plan.store)).run()
    if not sum(info.text_bytes for info in shards):
        raise plan.nothing_left(merged(info.funnel for info in shards))
    if plan.tokenizer.folder is None:
        report_on_trained(plan.store, tokenizer, shards)
    finish_store(plan, tokenizer, shards)


def set_up(plan: BuildPlan) -> tuple[TextTokenizer, str]:
    """Set up the folder and its tokenizer; return the tokenizer and the name of the encoder."""
    _claim(plan)
    tokenizer = store_tokenizer(plan)
    return tokenizer, choose_encoder(plan.backend, plan.store)


def _shards_were_read(plan: BuildPlan, encoder: str, error: EncoderDiffers) -> DataError:
    return DataError(
        f"The encoder {encoder} gave other token ids than the library tokenizers, "
        "after a run had read its shards.",
        got=f"{plan.store}: {error.what} {error.got or ''}".rstrip(),
        fix="train from step 0 in a new run.dir with data.backend=hf; the shards are rebuilt",
    )


def _claim(plan: BuildPlan) -> None:
    """Create the store's folder, or resume in it and delete its temporary files.

    Raises DataError for a folder with other files, or with a store of other facts.
    """
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
    _refuse_too_small_disk(plan)
    try:
        plan.store.mkdir(parents=True, exist_ok=True)
        # The marker is the folder's first file, so that a crashed build is recognised.
        write_json(marker, {"fingerprint": plan.fingerprint, "facts": plan.facts})
    except OSError as error:
        raise MachineError(
            "The folder of the token store cannot be written.",
            got=f"{plan.store}: {error.strerror}",
            fix="data.store=FOLDER that can be written",
        ) from None
    # Delete temporary files, unless another machine is building a part (`prepare.parts`).
    parts_lock = FileLock(plan.parts_lock)
    is_alone = parts_lock.try_acquire()
    for folder in (plan.store, *(plan.store / name for name in (*SPLITS, "shards", "tokenizer"))):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if is_alone and path.name.endswith(STAGING_SUFFIX):
                path.unlink(missing_ok=True)
    parts_lock.release()


def _facts_of(marker: Path) -> dict[str, Any]:
    """The facts in build.json. Raises DataError for a damaged file."""
    try:
        facts = json.loads(marker.read_text(encoding="utf-8"))["facts"]
        if isinstance(facts, dict):
            return facts
        got = f"{marker}: its facts are not an object"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        got = f"{marker}: {type(error).__name__}: {error}"
    raise DataError(
        "build.json, which identifies this unfinished store, is damaged.",
        got=got,
        fix=set_aside(marker.parent),
    )


def _refuse_too_small_disk(plan: BuildPlan) -> None:
    need = predicted_store_bytes(plan.sources, plan.max_text_bytes)
    done = sum(path.stat().st_size for split in SPLITS for path in (plan.store / split).glob("*.*"))
    place = plan.store if plan.store.is_dir() else nearest_existing(plan.store)
    free = shutil.disk_usage(place).free
    if need - done > free:
        needed = f"about {format_size(need - done)} are needed in {plan.store}"
        raise MachineError(
            "The token store will not fit on this disk.",
            got=f"{needed}, {format_size(free)} are free",
            fix="set data.store to a folder on a larger disk, "
            "or data.max_text_bytes=SIZE to use only the first SIZE bytes of text",
        )
    say(f"store: {plan.store}, up to about {format_size(need)} ({format_size(free)} free)")


class _Build:
    """Builds the missing shards, and commits all shards in order.

    Runs read committed shards during the build, so a committed shard is not changed any more.
    """

    def __init__(self, plan: BuildPlan, encoder: str) -> None:
        self.shards: list[ShardInfo] = []  # committed shards
        self._plan = plan
        self._job = plan.shard_job(encoder)
        self._bad = BadRecords(plan.max_bad_fraction)
        self._text_bytes = 0
        self._disk_read = 0
        self._position = 0  # decompressed bytes read
        self._progress = Progress("tokens", estimated_bytes(plan.sources), self._share, plan.relay)

    def run(self) -> list[ShardInfo]:
        plan = self._plan
        finished = finished_shards(plan.store)
        shards = run_shards(
            self._job, self._read, finished, plan.workers, self._progress, on_resume=_log_resume
        )
        try:
            with closing(shards):
                for info in shards:
                    if self._commit(info):
                        break
            self._check_bad_records(at_end=True)
        finally:
            self._progress.finish()
        self._remove_beyond(len(self.shards))
        return self.shards

    def _read(self, cursor: Cursor, number: int) -> Iterator[RawShard]:
        for raw in self._plan.reader.read(cursor, number, self._on_read):
            self._position = raw.end.position
            yield raw

    def _commit(self, info: ShardInfo) -> bool:
        """Add the next shard; return True when data.max_text_bytes is reached."""
        limit = self._plan.max_text_bytes
        if limit is not None and self._text_bytes + info.text_bytes > limit:
            info = self._cut(info, limit - self._text_bytes)
        self.shards.append(info)
        self._text_bytes += info.text_bytes
        self._bad.add(info.funnel, info.end.position - info.start.position)
        self._check_bad_records(at_end=False)
        write_json(self._plan.store / COMMITTED_NAME, {"shards": len(self.shards)})
        return limit is not None and (info.is_cut or self._text_bytes >= limit)

    def _cut(self, info: ShardInfo, budget: int) -> ShardInfo:
        """Build a shard again from only the first `budget` bytes of its text."""
        with closing(self._plan.reader.read(info.start, info.number)) as raws:
            return replace(self._job, text_budget=budget)(next(raws), lambda work: None)

    def _check_bad_records(self, *, at_end: bool) -> None:
        plan = self._plan
        self._bad.check(
            at_end=at_end, examples=lambda: bad_examples(plan.store, plan.sources, self.shards)
        )

    def _remove_beyond(self, count: int) -> None:
        """Remove the shards after the one in which data.max_text_bytes was reached."""
        store = self._plan.store
        for path in (store / "shards").glob("*.json"):
            number = int(path.stem)
            if number >= count:
                path.unlink()
                for split in SPLITS:
                    for kind in ("tok", "idx"):
                        shard_path(store, split, number, kind).unlink(missing_ok=True)

    def _on_read(self, size: int) -> None:
        self._disk_read += size

    def _share(self) -> float:
        """Progress from 0 to 1, of the source or of data.max_text_bytes."""
        sources = self._plan.sources
        total = estimated_bytes(sources)
        if self._disk_read and self._position and any(s.compression != "none" for s in sources):
            # The ratio of the bytes read so far predicts the total better than a typical ratio.
            size = sum(source.size for source in sources)
            total = int(self._position * size / self._disk_read)
        share = self._progress.source_bytes / max(1, total)
        limit = self._plan.max_text_bytes
        return share if limit is None else max(share, self._progress.text_bytes / limit)


def _log_resume(number: int, cursor: Cursor) -> None:
    say(f"{number} shards of an earlier build are complete; the build resumes after them")


def finished_shards(store: Path) -> dict[int, ShardInfo]:
    """The complete shards by number. Shards of a refused encoder count as missing."""
    found: dict[int, ShardInfo] = {}
    refused = refused_encoders(store)
    for path in (store / "shards").glob("*.json"):
        try:
            info = ShardInfo.read(path)
        except (OSError, ValueError, RecursionError):
            continue
        files = ((store / name, size) for name, size, _ in shard_files(info))
        is_complete = all(file.is_file() and file.stat().st_size == size for file, size in files)
        if info.backend not in refused and is_complete:
            found[info.number] = info
    return found
