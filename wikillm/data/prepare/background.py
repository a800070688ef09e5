"""The process that builds a token store while another process trains on its finished part.

The builder is not a rank and is in no process group. Its parent sends a `BuildPlan` over a pipe.
The builder waits for the lock (one builder at a time, on any number of nodes), builds, and answers
("done", None) or ("refused", error). When the parent closes the pipe or dies, the builder and its
workers exit at once; the next build resumes at the first missing shard. The builder logs to
`.STORE.log` beside the store.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from wikillm.core.errors import DataError, WikiLLMError
from wikillm.core.log import make_output_safe
from wikillm.data.prepare.build import ensure_store
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.workers.exclusive import beside, write_failure
from wikillm.data.workers.process import start_child, stop_child

_NICE = 5  # training has priority where both need a core


class Builder:
    """The parent's handle of the builder process. Forks of the parent cannot use or stop it."""

    def __init__(self, plan: BuildPlan) -> None:
        self._plan = plan
        self._owner = os.getpid()
        self._log = beside(plan.lock_base, ".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            self._process, self._pipe = start_child("wikillm.data.prepare.background", log=log)
        self._pipe.send(plan)
        self._has_ended = False
        self._error: WikiLLMError | None = None

    def failure(self) -> WikiLLMError | None:
        """Why the builder ended without a store; None while it runs and after it succeeds.

        The error is also written to a file, for other processes that wait for the store.
        """
        if self._has_ended or os.getpid() != self._owner:
            return self._error
        error: WikiLLMError | None = None
        try:
            if not self._pipe.poll():
                return None
            _, error = self._pipe.recv()
        except (EOFError, OSError):
            error = self._death()
        self._has_ended = True
        self._error = error
        if error is not None:
            write_failure(self._plan.lock_base, error)
        return error

    def stop(self) -> None:
        """Stop the builder; finished shards are kept."""
        if os.getpid() == self._owner:
            stop_child(self._process, self._pipe)
            self._has_ended = True

    def _death(self) -> DataError:
        code = self._process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        lines = []
        if self._log.is_file():
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f":\n{lines[-1][:200]}" if lines else ""
        resume = "start again with --resume auto: the build resumes at the first missing shard"
        return DataError(
            "The process that builds the token store died.",
            got=f"pid {self._process.pid}, {how}; its last output is in {self._log}{last}",
            fix=f"{resume}; if memory ran out, add data.workers=1",
        )


def main(descriptor: int) -> int:
    make_output_safe()
    os.nice(_NICE)
    pipe = Connection(descriptor)
    try:
        plan: BuildPlan = pipe.recv()
    except EOFError:
        return 0
    threading.Thread(target=_exit_with_parent, args=(pipe,), daemon=True).start()
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


def _exit_with_parent(pipe: Connection) -> None:
    """Exit when the parent closes the pipe. The parent sends nothing after the plan."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
