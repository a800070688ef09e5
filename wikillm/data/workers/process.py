"""Start a module of this package as a child process, with a pipe between parent and child.

The child does not import the user's main module. When the parent ends, the pipe closes, and the
child ends too.
"""

from __future__ import annotations

import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from typing import IO

from wikillm.core.child_environment import environment_with_wikillm

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")
_ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "FASTOKENS_BPE_THREADS": "1",  # fastokens 0.3.5 ignores the other two
}


def start_child(
    module: str, *, log: IO[bytes] | None = None
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run `python -m MODULE FD`; FD is the child's end of the pipe.

    Args:
        log: file for the child's output. A child with a log runs in its own session, so that
            Ctrl-C and signals to the process group do not reach it, and without the environment
            variables of a rank.
    """
    ours, theirs = Pipe()
    environment = environment_with_wikillm() | _ONE_THREAD
    if log is not None:
        for name in _RANK_VARIABLES:
            environment.pop(name, None)
    # -P: a numpy.py in the user's working directory is not imported
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=log is not None,
    )
    theirs.close()
    return process, ours


def stop_child(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    """End the process within a few seconds: terminate, then kill."""
    pipe.close()
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
