"""Run a job on many tasks in worker processes; results come in the order of the tasks.

Own processes and pipes rather than `multiprocessing` pools: the children import no main module of the user (no
`if __name__` guard needed, no torch), notice by the end of the pipe that the parent died, report progress while
they work, and at most one task per worker and one in hand are in memory.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from wikillm.core.errors import MachineError, WikiLLMError
from wikillm.data.workers.process import start_child, stop_child

_AHEAD = 4  # finished results that wait for an earlier one, per worker: a slow task holds the others up at last
_POLL_SECONDS = 0.5


def run_jobs(
    job: Callable[[Any, Callable[[Any], None]], Any],
    tasks: Iterable[Any],
    workers: int,
    on_work: Callable[[Any], None],
    on_wait: Callable[[], None] = lambda: None,
) -> Generator[Any, None, None]:
    """Yield `job(task, report)` for each task, in order. Job, tasks and results must be picklable.

    Args:
        workers: processes; 1 works in this one.
        on_work: hears what the job reports, in this process.
        on_wait: called about twice a second while nothing is ready.

    Raises what the job refused (WikiLLMError), RuntimeError with the worker's traceback for anything else, and
    MachineError when a worker is killed.
    """
    if workers == 1:
        for task in tasks:
            yield job(task, on_work)
        return
    crew: list[_Worker] = []
    try:
        yield from _Run(job, iter(tasks), workers, on_work, on_wait, crew).results()
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    def __init__(self, job: object) -> None:
        self.process, self.pipe = start_child("wikillm.data.workers.pool")
        self.task: int | None = None
        self.send(job)

    def send(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self.death() from None

    def receive(self) -> tuple[str, Any]:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self.death() from None
        if kind == "refused":
            raise value
        if kind == "bug":
            raise RuntimeError(f"in a worker process:\n{value}")
        return kind, value

    def death(self) -> MachineError:
        code = self.process.wait()
        killed = " (killed: often by the kernel, for want of memory)" if code == -9 else ""
        return MachineError(
            "A worker process died.",
            got=f"pid {self.process.pid}, exit code {code}{killed}",
            fix="start again, it goes on with the first missing shard; with less memory in use: data.workers=1",
        )

    def stop(self) -> None:
        stop_child(self.process, self.pipe)


class _Run:
    def __init__(
        self,
        job: object,
        tasks: Iterator[Any],
        workers: int,
        on_work: Callable[[Any], None],
        on_wait: Callable[[], None],
        crew: list[_Worker],
    ) -> None:
        self._job, self._tasks, self._workers = job, tasks, workers
        self._on_work, self._on_wait, self._crew = on_work, on_wait, crew
        self._in_hand: deque[Any] = deque()
        self._ended = False
        self._sent = self._given = 0
        self._ready: dict[int, Any] = {}

    def results(self) -> Iterator[Any]:
        while True:
            while self._given in self._ready:
                yield self._ready.pop(self._given)
                self._given += 1
            self._hand_out()
            if self._ended and not self._in_hand and self._given == self._sent:
                return
            self._listen()

    def _hand_out(self) -> None:
        """Give each idle worker a task; keep one more in hand, read while the workers are busy."""
        while self._sent - self._given < _AHEAD * self._workers and self._has_task():
            worker = next((worker for worker in self._crew if worker.task is None), None)
            if worker is None and len(self._crew) < self._workers:
                worker = _Worker(self._job)
                self._crew.append(worker)
            if worker is None:
                return
            worker.send(self._in_hand.popleft())
            worker.task = self._sent
            self._sent += 1

    def _has_task(self) -> bool:
        if not self._in_hand and not self._ended:
            try:
                self._in_hand.append(next(self._tasks))
            except StopIteration:
                self._ended = True
        return bool(self._in_hand)

    def _listen(self) -> None:
        pipes: dict[Connection, _Worker] = {w.pipe: w for w in self._crew if w.task is not None}
        found = wait(list(pipes), timeout=_POLL_SECONDS)
        if not found:
            self._on_wait()
        for pipe in found:
            worker = pipes[pipe]  # type: ignore[index]
            kind, value = worker.receive()
            if kind == "work":
                self._on_work(value)
            else:
                assert worker.task is not None, "only a worker with a task answers"
                self._ready[worker.task] = value
                worker.task = None


def main(descriptor: int) -> int:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent decides
    pipe = Connection(descriptor)
    try:
        job = pipe.recv()
        while True:
            task = pipe.recv()
            try:
                answer = ("done", job(task, lambda work: pipe.send(("work", work))))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except WikiLLMError as error:
                answer = ("refused", error)
            except OSError as error:
                where = f"{error.strerror}: {error.filename or 'while a shard was written'}"
                fix = "make room, then start again: it goes on with the first missing shard"
                answer = (
                    "refused",
                    MachineError("A worker process could not go on.", got=where, fix=fix),
                )
            except Exception:
                answer = ("bug", traceback.format_exc())
            del task
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # nothing to tear down, and no thread of a library to wait for
