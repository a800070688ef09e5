"""Recognizes errors of collectives that a lost rank has caused, and finds why that rank ended."""

from __future__ import annotations

import re
from pathlib import Path

from wikillm.core.errors import ExitCode, MachineError, WikiLLMError
from wikillm.core.faults import as_refusal
from wikillm.supervise.records import UNKNOWN_END, end_of, read_records

_CONNECTION = re.compile(
    r"connection|socket|gloo|nccl|reset by peer|broken pipe|tcpstore|rendezvous|monitoredbarrier"
    r"|wait timeout|timed out (after|waiting)",
    re.IGNORECASE,
)


def is_about_a_connection(error: BaseException) -> bool:
    """Whether the error says that a peer was lost; False for errors of files and of WikiLLM."""
    if isinstance(error, WikiLLMError):
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return False
    if isinstance(error, ConnectionError):
        return True
    return as_refusal(error) is None and bool(_CONNECTION.search(str(error)))


def lost_rank(run: Path, own: int) -> MachineError | None:
    """An error that names a rank other than `own` that has ended, with that rank's exit code.

    Returns None if no such rank is found in the records.
    """
    for record in read_records(run):
        process = record.process
        if record.rank == own:
            continue
        # The rank has recorded its exit, or it was on this machine and was killed.
        if record.exit is not None and record.exit["code"]:
            lost = MachineError(f"rank {record.rank} ended: {record.exit['reason']}")
            lost.exit_code = ExitCode(record.exit["code"])
        elif record.exit is None and process.is_here() and not process.is_alive():
            how = end_of(process.pid) or UNKNOWN_END
            lost = MachineError(f"rank {record.rank} (pid {process.pid}) {how}.")
        else:
            continue
        lost.lost_rank = record.rank
        return lost
    return None
