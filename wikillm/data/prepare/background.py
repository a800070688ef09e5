"""The process that builds a token store while another one trains on what stands of it.

It is no rank and no member of a process group. Its parent sends it a `BuildPlan` over a pipe; it waits for its turn
(one builder at a time, on however many nodes), builds, and answers ("done", None) or ("refused", error). It survives
nothing: when the pipe ends, that is when the parent closes it or dies, it ends at once, and so do its workers; the
next build goes on at the first missing shard. What it has to say goes to `.STORE.log` beside the store.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from wikillm.core.errors import DataError, WikiLLMError
from wikillm.core.log import make_output_safe
from wikillm.data.prepare.build import ensure_store
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.workers.exclusive import beside, write_failure
from wikillm.data.workers.process import start_child, stop_child

_NICE = 5  # the trainer comes first where both want a core


class Builder:
    """The parent's side. Copies in other processes (forks) know nothing of it."""

    def __init__(self, plan: BuildPlan) -> None:
        self._plan, self._owner = plan, os.getpid()
        self._log = beside(plan.lock_base, ".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            self._process, self._pipe = start_child("wikillm.data.prepare.background", log=log)
        self._pipe.send(plan)
        self._is_done = False
        self._error: WikiLLMError | None = None

    def trouble(self) -> WikiLLMError | None:
        """Why it ended without a store; None while it works and when it is done. Told to other processes too."""
        if self._is_done or os.getpid() != self._owner:
            return self._error
        error: WikiLLMError | None = None
        try:
            if not self._pipe.poll():
                return None
            _, error = self._pipe.recv()
        except (EOFError, OSError):
            error = self._death()
        self._is_done, self._error = True, error  # remembered: the pipe has nothing more to say
        if error is not None:
            write_failure(self._plan.lock_base, error)
        return error

    def stop(self) -> None:
        """End it; what it has built stays."""
        if os.getpid() == self._owner:
            stop_child(self._process, self._pipe)
            self._is_done = True

    def _death(self) -> DataError:
        code = self._process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return DataError(
            "The process that builds the token store died.",
            got=f"pid {self._process.pid}, {how}; its last words are in {self._log}"
            + _last_line(self._log),
            fix="start again with --resume auto: it goes on at the first missing shard; with less memory: data.workers=1",
        )


def _last_line(log: Path) -> str:
    lines = (
        log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if log.is_file()
        else []
    )
    return f":\n{lines[-1][:200]}" if lines else ""


def main(descriptor: int) -> int:
    make_output_safe()
    os.nice(_NICE)
    pipe = Connection(descriptor)
    try:
        plan: BuildPlan = pipe.recv()
    except EOFError:
        return 0
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    answer: tuple[str, WikiLLMError | None] = ("done", None)
    try:
        ensure_store(plan)
    except WikiLLMError as error:
        answer = ("refused", error)
    except Exception:
        traceback.print_exc()
        return 1
    pipe.send(answer)
    return 0


def _end_with_parent(pipe: Connection) -> None:
    """The parent sends nothing more, so whatever arrives is the end of the pipe."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
