"""The main of a worker process: gets a job, then tasks, over a pipe; sends back reports and results.

Started by `pool` as `python -m wikillm.data.workers.worker FD`, so it imports neither the parent's main module nor torch.
It ends when the pipe does, that is when the parent closes it or dies, in the middle of a task at the next report.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from wikillm.core.errors import MachineError, WikiLLMError


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
