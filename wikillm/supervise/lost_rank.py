"""Which errors of a collective mean a lost rank, and why that rank ended."""

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
    """Whether a collective reports a lost peer; False for errors of files and of WikiLLM."""
    if isinstance(error, WikiLLMError):
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return False
    if isinstance(error, ConnectionError):
        return True
    return as_refusal(error) is None and bool(_CONNECTION.search(str(error)))


def lost_rank(run: Path, own: int) -> MachineError | None:
    """An error for a rank other than `own` that has ended, with the exit code in its record."""
    for record in read_records(run):
        if record.rank == own:
            continue
        if record.exit is not None and record.exit["code"]:
            lost = MachineError(f"rank {record.rank} ended: {record.exit['reason']}")
            lost.exit_code = ExitCode(record.exit["code"])
            lost.lost_rank = record.rank
            return lost
        if record.exit is None and record.process.is_here() and not record.process.is_alive():
            how = end_of(record.process.pid) or UNKNOWN_END
            lost = MachineError(f"rank {record.rank} (pid {record.process.pid}) {how}.")
            lost.lost_rank = record.rank
            return lost
    return None
