"""Run a job on many tasks in worker processes; results come in the order of the tasks.

Unlike in a `multiprocessing` pool, a worker imports neither the user's main module (which therefore
needs no `if __name__` guard) nor torch, reports progress while it works, and ends when its parent
ends. Memory holds at most one task per worker, and the next task.
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

_AHEAD = 4
"""Number of results per worker that may wait for an earlier result; no more tasks are sent then."""
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

    Raises the WikiLLMError of the job (errors such as a full disk become one), MachineError when a
    worker is killed, and RuntimeError with the worker's traceback for any other exception.
    """
    if workers == 1:
        for task in tasks:
            yield job(task, on_work)
        return
    started: list[_Worker] = []
    try:
        yield from _results(job, iter(tasks), workers, started, on_work, on_wait)
    finally:
        for worker in started:
            stop_child(worker.process, worker.pipe)


class _Worker:
    """A worker process; `task` is the number of its current task, None while it is idle."""

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
        """("work", report) or ("done", result). Raises the error of the job, or of its process."""
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


def _results(
    job: object,
    tasks: Iterator[Any],
    workers: int,
    started: list[_Worker],
    on_work: Callable[[Any], None],
    on_wait: Callable[[], None],
) -> Iterator[Any]:
    """The results in the order of the tasks. Adds the workers to `started`, up to `workers`."""
    ready: dict[int, Any] = {}  # results by task number
    sent = 0  # number of tasks that were sent
    given = 0  # number of results that were yielded
    task = next(tasks, _END)  # the next task, read while the workers are busy
    while task is not _END or given < sent:
        # Send tasks to idle workers, unless too many results wait for an earlier result.
        while task is not _END and sent - given < _AHEAD * workers:
            idle = next((worker for worker in started if worker.task is None), None)
            if idle is None and len(started) < workers:
                idle = _Worker(job)
                started.append(idle)
            if idle is None:
                break
            idle.send(task)
            idle.task = sent
            sent += 1
            task = next(tasks, _END)
        # Take reports and results from the workers that have sent something.
        busy = {worker.pipe: worker for worker in started if worker.task is not None}
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
