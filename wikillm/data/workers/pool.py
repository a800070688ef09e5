"""Run a job on many tasks in worker processes; results come in the order of the tasks.

Not a `multiprocessing` pool: a worker imports neither the user's main module (no `if __name__`
guard needed) nor torch, reports progress while it works, and ends when its parent does. At most one
task per worker and the next task are in memory.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from wikillm.core.errors import MachineError
from wikillm.core.faults import as_refusal
from wikillm.data.workers.process import start_child, stop_child

# Results per worker that may wait for an earlier result; then a slow task stalls the others.
_AHEAD = 4
_POLL_SECONDS = 0.5
_END = object()
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)  # the other end of a pipe was closed


def run_jobs(
    job: Callable[[Any, Callable[[Any], None]], Any],
    tasks: Iterable[Any],
    workers: int,
    on_work: Callable[[Any], None],
    on_wait: Callable[[], None] = lambda: None,
) -> Generator[Any, None, None]:
    """Yield `job(task, report)` for each task, in order. Job, tasks and results must be picklable.

    Args:
        workers: number of processes; 1 runs the job in this process.
        on_work: called in this process with each report of the job.
        on_wait: called about twice a second while nothing is ready.

    Raises the job's WikiLLMError (an error of the machine is one too), RuntimeError with the
    worker's traceback for any other exception, and MachineError when a worker is killed.
    """
    if workers == 1:
        for task in tasks:
            yield job(task, on_work)
        return
    pool = _Pool(job, workers)
    try:
        yield from pool.results(iter(tasks), on_work, on_wait)
    finally:
        for worker in pool.started:
            stop_child(worker.process, worker.pipe)


class _Worker:
    def __init__(self, job: object) -> None:
        self.process, self.pipe = start_child("wikillm.data.workers.pool")
        self.task: int | None = None
        self.send(job)

    def send(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except _GONE:
            raise self._death() from None

    def receive(self) -> tuple[str, Any]:
        try:
            kind, value = self.pipe.recv()
        except _GONE:
            raise self._death() from None
        if kind == "refused":
            raise value
        if kind == "bug":
            raise RuntimeError(f"in a worker process:\n{value}")
        return kind, value

    def _death(self) -> MachineError:
        code = self.process.wait()
        killed = " (killed, often by the kernel for lack of memory)" if code == -9 else ""
        return MachineError(
            "A worker process died.",
            got=f"pid {self.process.pid}, exit code {code}{killed}",
            fix="start again: the build resumes at the first missing shard; "
            "data.workers=1 uses less memory",
        )


class _Pool:
    def __init__(self, job: object, workers: int) -> None:
        self.started: list[_Worker] = []
        self._job = job
        self._workers = workers

    def results(
        self, tasks: Iterator[Any], on_work: Callable[[Any], None], on_wait: Callable[[], None]
    ) -> Iterator[Any]:
        ready: dict[int, Any] = {}
        sent = given = 0
        task = next(tasks, _END)  # the next task, read while the workers are busy
        while task is not _END or given < sent:
            while (
                task is not _END
                and sent - given < _AHEAD * self._workers
                and (worker := self._idle()) is not None
            ):
                worker.send(task)
                worker.task = sent
                sent += 1
                task = next(tasks, _END)
            busy = {worker.pipe: worker for worker in self.started if worker.task is not None}
            answered = wait(list(busy), timeout=_POLL_SECONDS)
            if not answered:
                on_wait()
            for pipe in answered:
                worker = busy[pipe]  # type: ignore[index]
                kind, value = worker.receive()
                if kind == "work":
                    on_work(value)
                else:
                    assert worker.task is not None, "only a worker with a task answers"
                    ready[worker.task] = value
                    worker.task = None
            while given in ready:
                yield ready.pop(given)
                given += 1

    def _idle(self) -> _Worker | None:
        for worker in self.started:
            if worker.task is None:
                return worker
        if len(self.started) == self._workers:
            return None
        self.started.append(_Worker(self._job))
        return self.started[-1]


def main(descriptor: int) -> int:
    """Run a worker: receive a job, then tasks; send reports and results, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    pipe = Connection(descriptor)
    try:
        job = pipe.recv()
        while True:
            task = pipe.recv()
            try:
                answer = ("done", job(task, lambda work: pipe.send(("work", work))))
            except _GONE:
                raise
            except Exception as error:
                refusal = as_refusal(error)
                answer = ("refused", refusal) if refusal else ("bug", traceback.format_exc())
            del task  # frees its memory before the next task is received
            pipe.send(answer)
    except _GONE:
        return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # skips the teardown, and does not wait for threads of libraries
