"""Run a job on every shard of the sources, in order, and resume where an earlier run ended.

The build of a store and the first pass of deduplication use it. Shards that an earlier run finished
are not computed again. Finished shards at the front are not read either; later finished shards are
read, then skipped. Results come in the order of the shards, for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, Protocol, TypeVar

from wikillm.data.sources.read import Cursor, RawShard
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress


class ShardResult(Protocol):
    """The result of a job for one shard, with the shard's number and place in the sources."""

    @property
    def number(self) -> int: ...
    @property
    def start(self) -> Cursor: ...
    @property
    def end(self) -> Cursor: ...


R = TypeVar("R", bound=ShardResult)


def run_shards(
    job: Callable[[RawShard, Callable[[Any], None]], R],
    read: Callable[[Cursor, int], Iterable[RawShard]],
    finished: Mapping[int, R],
    workers: int,
    progress: Progress,
    *,
    cursor: Cursor = Cursor(),
    number: int = 0,
    on_resume: Callable[[int, Cursor], None] = lambda number, cursor: None,
) -> Generator[R, None, None]:
    """Yield the result of each shard from `cursor` on, the first of them numbered `number`.

    Args:
        read: returns the shards from a cursor on, numbered from the given number.
        finished: results of an earlier run by number, used where their cursors match.
        on_resume: called with the number and cursor where reading starts, if results were reused.
    """
    # Finished shards at the front: nothing is read for them.
    first = number
    while (result := finished.get(number)) is not None and result.start == cursor:
        yield result
        number += 1
        cursor = result.end
    if number > first:
        on_resume(number, cursor)
    # Later finished shards are read, to know where the next shard begins, and skipped.
    reused: dict[int, R] = {}

    def missing() -> Iterator[RawShard]:
        for raw in read(cursor, number):
            earlier = finished.get(raw.number)
            if earlier is not None and (earlier.start, earlier.end) == (raw.start, raw.end):
                reused[raw.number] = earlier
            else:
                yield raw

    # New and reused results are merged by number.
    next_number = number
    with closing(run_jobs(job, missing(), workers, progress.add, progress.tick)) as results:
        for result in results:
            while next_number in reused:
                yield reused.pop(next_number)
                next_number += 1
            yield result
            next_number += 1
    while next_number in reused:
        yield reused.pop(next_number)
        next_number += 1
