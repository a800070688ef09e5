"""Decides which ranks have joined, are lost or are stalled, without sockets or clocks.

The coordinator calls `hello`, `beat`, `bye` and `died` for messages of the ranks. `verdict(now)`
returns an `End` if the run has to end. The failure of one rank often ends others a moment later, so
a verdict on a death waits for a report: a reason that a rank reported itself has precedence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wikillm.core.errors import ExitCode
from wikillm.core.units import format_seconds
from wikillm.supervise.alerts import event_of

AGREED = (ExitCode.CORRUPTED, ExitCode.DIVERGED, ExitCode.STOPPED)
"""Codes of errors that all ranks raise at the same step. Every rank then exits by itself."""
FAILED_WAITS = 5.0
"""Seconds from a rank's error to the end of the other ranks, which may raise the same error."""
STOPPED_WAITS = 0.5
"""Seconds after a stop before training, when the ranks have nothing to agree on."""
DIED_WAITS = 2.5
"""Seconds from a death of unknown cause to the end; another rank may report the cause."""
KILLED_WAITS = 0.5
"""Seconds from a death to the end, if the kernel reported how the process ended."""
OTHER_SECRET = (
    "with a different secret: run.dir is not the same folder on all nodes, WIKILLM_RUN_SECRET "
    "differs, or it is another run."
)
MAX_REFUSED = 16  # refused addresses to remember
STEP_PHASES = ("step", "first step")
"""Phases in which a rank waits for the other ranks in collectives."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: `rendezvous` for every rank to join, `lost` without a heartbeat, `stall` without
    progress, `leave` between the first and the last exit."""

    rendezvous: float
    lost: float
    stall: float
    leave: float


@dataclass(frozen=True, slots=True)
class End:
    """The verdict that ends the run on all ranks.

    Attributes:
        code: exit code of all ranks.
        event: event of the alert: failed, stopped, lost or stalled.
        lost_rank: the rank that ended or that blocks the others, if it is a single rank.
    """

    code: int
    reason: str
    event: str
    lost_rank: int | None = None

    def to_message(self) -> dict[str, Any]:
        lost = {"lost_rank": self.lost_rank}
        return {"end": self.code, "reason": self.reason, "event": self.event, **lost}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> End:
        event = str(message.get("event", "failed"))
        return cls(int(message["end"]), str(message["reason"]), event, message.get("lost_rank"))


STOPPED_AT_ONCE = End(
    ExitCode.STOPPED, "Ended at once by `wikillm stop --now`; nothing was saved.", "stopped"
)


@dataclass(slots=True)
class Member:
    """State of one rank in the coordinator. Times are values of the coordinator's time.monotonic().

    Attributes:
        standing: seconds since the rank's last progress; `limit`: seconds after which it stalls.
        median: duration of a step in seconds.
        exited: time, exit code and reason of the exit that the rank reported.
        is_agreed: all ranks exit for the reason of `exited`.
        died: time at which the verdict on a rank's death is due, and how the rank ended.
    """

    host: str
    address: str
    versions: dict[str, str]
    last_received: float
    phase: str = "start"
    step: int = 0
    standing: float = 0.0
    limit: float | None = None
    median: float = 0.0
    pid: int = 0  # 0: unknown
    exited: tuple[float, int, str] | None = None
    is_agreed: bool = True
    died: tuple[float, str] | None = None


@dataclass
class Membership:
    """The ranks that have joined the run, and the verdict on them.

    Attributes:
        began: when the coordinator started to wait for the ranks.
        nodes: names by node number, as far as the launcher passes them on.
        ranks: ranks that have joined, by number.
        refused: addresses whose messages were signed with a different secret.
        resumed_at: end of the coordinator's last suspension; silence before it does not count.
    """

    world_size: int
    local_size: int
    limits: Limits
    began: float
    nodes: tuple[str, ...] = ()
    ranks: dict[int, Member] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    resumed_at: float = float("-inf")

    @property
    def is_complete(self) -> bool:
        return len(self.ranks) == self.world_size

    @property
    def is_one_node(self) -> bool:
        return self.world_size == self.local_size

    def hello(self, rank: int, member: Member) -> None:
        self.ranks[rank] = member

    def refuse(self, address: str) -> None:
        if len(self.refused) < MAX_REFUSED:
            self.refused.add(address)

    def beat(self, rank: int, message: dict[str, Any], now: float) -> None:
        member = self.ranks[rank]
        member.last_received = now
        member.phase = str(message["phase"])
        member.step = int(message["step"])
        member.standing = message["standing"]
        member.limit = message["limit"]
        member.median = message["median"]

    def bye(self, rank: int, code: int, reason: str, now: float, *, is_agreed: bool = True) -> None:
        if self.ranks[rank].exited is None:
            self.ranks[rank].exited = (now, code, reason)
            self.ranks[rank].is_agreed = is_agreed and code in AGREED

    def died(self, rank: int, how: str, now: float, *, is_known: bool = False) -> None:
        """`how`: text such as "was killed by signal 9". `is_known`: the kernel reported `how`."""
        if self.ranks[rank].exited is None and self.ranks[rank].died is None:
            self.ranks[rank].died = (now + (KILLED_WAITS if is_known else DIED_WAITS), how)

    def forget(self, rank: int) -> None:
        """Remove a rank whose agent has ended: the rank continues unsupervised."""
        self.ranks.pop(rank, None)

    def reporter(self) -> int:
        """The rank that reports to the user: the lowest that still runs."""
        running = (
            rank for rank, member in self.ranks.items() if not member.exited and not member.died
        )
        return min(running, default=0)

    def verdict(self, now: float) -> End | None:
        """The reason to end the run, or None. Called several times a second."""
        return (
            self._failed(now)
            or self._died(now)
            or self._incomplete(now)
            or self._different()
            or self._silent(now)
            or self._stalled(now)
        )

    def _failed(self, now: float) -> End | None:
        """The verdict on the first rank that reported an error."""
        exits = [(member.exited, rank) for rank, member in self.ranks.items() if member.exited]
        failed = [(exited, rank) for exited, rank in exits if exited[1] != 0]
        if not failed:
            return None
        (when, code, reason), rank = min(failed)
        if self.ranks[rank].is_agreed:
            wait = self.limits.leave
        else:
            wait = STOPPED_WAITS if code == ExitCode.STOPPED else FAILED_WAITS
        if now - when < wait:
            return None
        return End(code, f"{self._name(rank)} ended: {reason}", event_of(code), rank)

    def _died(self, now: float) -> End | None:
        """The verdict on the first rank that ended without a report."""
        # An error that a rank reported itself has precedence: `_failed` reports it when it is due.
        members = self.ranks.values()
        if any(member.exited and member.exited[1] and not member.is_agreed for member in members):
            return None
        dead = [(member.died, rank) for rank, member in self.ranks.items() if member.died]
        if not dead:
            return None
        (due, how), rank = min(dead)
        if now < due:
            return None
        return End(ExitCode.MACHINE, f"{self._name(rank)} {how}.", "lost", rank)

    def _incomplete(self, now: float) -> End | None:
        """The verdict on ranks that did not join in time."""
        if self.is_complete or now - self.began < self.limits.rendezvous:
            return None
        absent = [rank for rank in range(self.world_size) if rank not in self.ranks]
        numbers = sorted({rank // self.local_size for rank in absent})
        nodes = [self.nodes[n] if n < len(self.nodes) else f"node number {n}" for n in numbers]
        joined = ", ".join(sorted({member.host for member in self.ranks.values()})) or "none"
        reason = (
            f"{', '.join(nodes)} ({_ranks(absent)}) did not join within "
            f"{format_seconds(self.limits.rendezvous)} (train.rendezvous_seconds); "
            f"joined: {joined}."
        )
        if self.refused:
            reason += f"\n  {', '.join(sorted(self.refused))} was refused, {OTHER_SECRET}"
        return End(ExitCode.MACHINE, reason, "lost")

    def _different(self) -> End | None:
        """The verdict on nodes whose versions differ from those of rank 0's node."""
        if not self.is_complete:
            return None
        reference = self.ranks[0]
        lines = []
        for name, expected in reference.versions.items():
            hosts_by_value: dict[str, dict[str, None]] = {}  # the hosts in order, each once
            for _, member in sorted(self.ranks.items()):
                value = member.versions.get(name, "nothing")
                if value != expected:
                    hosts_by_value.setdefault(value, {})[member.host] = None
            for value, hosts in hosts_by_value.items():
                where = f"{value} on {', '.join(hosts)}"
                lines.append(f"  {name}: {expected} on {reference.host}, {where}")
        if not lines:
            return None
        reason = "\n".join(["Versions, code or settings differ between the nodes.", *lines])
        return End(ExitCode.MACHINE, reason, "failed")

    def _silent(self, now: float) -> End | None:
        """The verdict on ranks whose agents send no heartbeat."""
        silence = {
            rank: now - max(member.last_received, self.resumed_at)
            for rank, member in self.ranks.items()
            if not member.exited
        }
        lost = [rank for rank, seconds in silence.items() if seconds > self.limits.lost]
        if not lost:
            return None
        longest = max(silence[rank] for rank in lost)
        return End(
            ExitCode.MACHINE,
            f"No heartbeat from {self._names(lost)} for {longest:.0f} s: "
            "the machine or its network is down.",
            "lost",
        )

    def _stalled(self, now: float) -> End | None:
        """The verdict on ranks without progress. It names the ranks that block the others."""
        running = {rank: member for rank, member in self.ranks.items() if not member.exited}
        late = {
            rank: member
            for rank, member in running.items()
            if member.limit is not None
            and min(member.standing, now - self.resumed_at) > member.limit
        }
        if not late:
            return None
        lowest_step = min(member.step for member in late.values())
        # Ranks that wait in a step are not stalled while another rank is busy in a phase with a
        # limit of its own, such as generating samples.
        all_wait = all(member.phase in STEP_PHASES for member in late.values())
        on_time = [member for rank, member in running.items() if rank not in late]
        busy = [member for member in on_time if member.phase not in (*STEP_PHASES, "data")]
        if all_wait and any(member.step <= lowest_step for member in busy):
            return None
        # The late ranks that do not wait in a step block the ranks that do.
        blocking = [
            rank
            for rank, member in late.items()
            if member.step == lowest_step and member.phase not in STEP_PHASES
        ]
        first = late[min(blocking or late)]
        blame = "; no single rank is behind" if self.world_size > 1 else ""
        if blocking and self.world_size > 1:
            verb = "blocks" if len(blocking) == 1 else "block"
            blame = f"; {self._names(blocking)} {verb} the other ranks"
        places = sorted(self.ranks.items(), key=lambda item: (item[0] not in blocking, item[0]))
        where = "; ".join(
            f"{self._place(rank)}: {member.phase}, step {member.step}, for {member.standing:.0f} s"
            for rank, member in places[:16]
        )
        return End(
            ExitCode.MACHINE,
            f"No progress for {first.standing:.0f} s in the phase {first.phase!r} "
            f"(limit {first.limit:.0f} s){blame}.\n"
            f"  {where}\n  The stacks of every rank are in RUN/logs/rank_*.log.",
            "stalled",
            blocking[0] if len(blocking) == 1 and self.world_size > 1 else None,
        )

    def _name(self, rank: int) -> str:
        """`rank 3 on node2 (10.0.0.2, pid 71)`, without the node if there is only one."""
        member = self.ranks[rank]
        pid = f"pid {member.pid}" if member.pid else ""
        if self.is_one_node:
            return f"rank {rank} ({pid})" if pid else f"rank {rank}"
        return f"rank {rank} on {member.host} ({', '.join(filter(None, (member.address, pid)))})"

    def _place(self, rank: int) -> str:
        return f"rank {rank}" if self.is_one_node else f"rank {rank} on {self.ranks[rank].host}"

    def _names(self, ranks: Iterable[int]) -> str:
        """`node2 (10.0.0.2, ranks 8-9)`, one entry for each host."""
        if self.is_one_node:
            return ", ".join(self._name(rank) for rank in sorted(ranks))
        hosts: dict[tuple[str, str], list[int]] = {}
        for rank in sorted(ranks):
            hosts.setdefault((self.ranks[rank].host, self.ranks[rank].address), []).append(rank)
        return ", ".join(
            f"{host} ({address}, {_ranks(found)})" for (host, address), found in hosts.items()
        )


def _ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 8-15`, `ranks 1, 3`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks))
