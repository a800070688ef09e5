"""Run a job on every shard of the sources, in order, and resume where an earlier run ended.

The build of a store and the first pass of deduplication use this loop. Shards that an earlier run
finished are not computed again. Results come in the order of the shards, for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

from wikillm.data.sources.read import Cursor, RawShard, ShardRange
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress

R = TypeVar("R", bound=ShardRange)
"""The result of a job for one shard."""


def run_shards(
    job: Callable[[RawShard, Callable[[Any], None]], R],
    read: Callable[[Cursor, int], Iterable[RawShard]],
    finished: Mapping[int, R],
    workers: int,
    progress: Progress,
    on_resume: Callable[[int, Cursor], None] = lambda number, cursor: None,
) -> Generator[R, None, None]:
    """Yield the result of each shard, in order.

    Args:
        read: returns the shards from a cursor on, the first of them with the given number.
        finished: results of an earlier run by number; a result is reused if its cursors match.
        on_resume: called with the number and the cursor of the first shard that is read, if
            earlier shards were reused.
    """
    # Finished shards at the front are not read.
    number = 0
    cursor = Cursor()
    while (result := finished.get(number)) is not None and result.start == cursor:
        yield result
        number += 1
        cursor = result.end
    if number:
        on_resume(number, cursor)
    # Later finished shards are read, to know where the next shard begins, but not given to workers.
    waiting: dict[int, R] = {}  # results for which an earlier result is missing

    def missing() -> Iterator[RawShard]:
        for raw in read(cursor, number):
            earlier = finished.get(raw.number)
            if earlier is not None and (earlier.start, earlier.end) == (raw.start, raw.end):
                waiting[raw.number] = earlier
            else:
                yield raw

    # Yield new and reused results by number.
    next_number = number
    with closing(run_jobs(job, missing(), workers, progress.add, progress.tick)) as results:
        for result in results:
            waiting[result.number] = result
            while next_number in waiting:
                yield waiting.pop(next_number)
                next_number += 1
    yield from (waiting[number] for number in sorted(waiting))
