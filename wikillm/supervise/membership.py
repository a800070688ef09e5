"""Which ranks have joined, which are lost, which are stalled: judged without sockets or clocks.

Facts come in (`hello`, `beat`, `bye`, `died`); `verdict(now)` says whether the run has to end, with
which code and why. A reason that a rank gave itself precedes an inferred one, so each verdict waits
a moment for a better one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wikillm.core.errors import ExitCode
from wikillm.core.units import format_seconds
from wikillm.supervise.alerts import event_of

AGREED = (ExitCode.CORRUPTED, ExitCode.DIVERGED, ExitCode.STOPPED)
"""Raised on all ranks at the same step; all of them then exit."""
FAILED_WAITS = 5.0
"""Seconds from a rank's own error to the end of the others: they may raise the same one."""
STOPPED_WAITS = 0.5
"""The same for a rank that was stopped before training: no agreement is pending."""
DIED_WAITS = 2.5
"""Seconds from a silent death to the end: another rank may have reported the reason."""
KILLED_WAITS = 0.5
"""The same where the kernel knows how the process ended."""
OTHER_SECRET = (
    "with a different secret: run.dir is not the same folder on all nodes, WIKILLM_RUN_SECRET "
    "differs, or it is another run."
)
MOST_REFUSED = 16  # refused addresses that are remembered
SHORT = ("step", "first step")  # phases in which a rank waits for the others


@dataclass(frozen=True, slots=True)
class Limits:
    """In seconds: `rendezvous` for every rank to join, `lost` without a heartbeat, `stall` without
    progress, `leave` is the grace period between the first and the last exit."""

    rendezvous: float
    lost: float
    stall: float
    leave: float


@dataclass(frozen=True, slots=True)
class End:
    """The verdict that ends the run on all ranks."""

    code: int
    reason: str
    event: str  # of the alert: failed, stopped, lost, stalled
    lost_rank: int | None = None  # the only one that has ended, or that blocks the others


@dataclass(slots=True)
class Member:
    """What is known of one rank; times are the coordinator's clock."""

    host: str
    address: str
    facts: dict[str, str]
    last_received: float
    phase: str = "start"
    step: int = 0
    standing: float = 0.0
    limit: float | None = None
    median: float = 0.0
    pid: int = 0  # 0: unknown
    left: tuple[float, int, str] | None = None  # when, exit code, reason: it reported its exit
    is_agreed: bool = True  # the others leave the same way
    died: tuple[float, str] | None = None  # when the end is due, how


@dataclass
class Membership:
    """`nodes` are names by node number, as far as the launcher knows them."""

    world_size: int
    local_size: int
    limits: Limits
    began: float
    nodes: tuple[str, ...] = ()
    ranks: dict[int, Member] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # addresses with a different secret
    since: float = float("-inf")  # end of the last suspension: silence before does not count

    @property
    def is_complete(self) -> bool:
        return len(self.ranks) == self.world_size

    @property
    def is_one_node(self) -> bool:
        return self.world_size == self.local_size

    def hello(
        self, rank: int, host: str, address: str, facts: dict[str, str], now: float, pid: int = 0
    ) -> None:
        self.ranks[rank] = Member(host, address, facts, now, pid=pid)

    def refuse(self, address: str) -> None:
        if len(self.refused) < MOST_REFUSED:
            self.refused.add(address)

    def beat(self, rank: int, message: dict[str, Any], now: float) -> None:
        known = self.ranks[rank]
        known.last_received = now
        known.phase = str(message["phase"])
        known.step = int(message["step"])
        known.standing = message["standing"]
        known.limit = message["limit"]
        known.median = message["median"]

    def bye(self, rank: int, code: int, reason: str, now: float, *, is_agreed: bool = True) -> None:
        if self.ranks[rank].left is None:
            self.ranks[rank].left = (now, code, reason)
            self.ranks[rank].is_agreed = is_agreed and code in AGREED

    def died(self, rank: int, how: str, now: float, *, is_known: bool = False) -> None:
        """`how` follows the rank's name: "was killed by signal 9". `is_known`: not a guess."""
        if self.ranks[rank].left is None and self.ranks[rank].died is None:
            self.ranks[rank].died = (now + (KILLED_WAITS if is_known else DIED_WAITS), how)

    def forget(self, rank: int) -> None:
        """Its agent is gone but the rank runs: it continues unsupervised."""
        self.ranks.pop(rank, None)

    def reporter(self) -> int:
        """The rank that reports to the user: the first that still can."""
        here = (rank for rank, known in self.ranks.items() if not known.left and not known.died)
        return min(here, default=0)

    def verdict(self, now: float) -> End | None:
        """None while nothing is wrong. Called several times a second."""
        return (
            self._failed(now)
            or self._died(now)
            or self._incomplete(now)
            or self._different()
            or self._silent(now)
            or self._stalled(now)
        )

    def _failed(self, now: float) -> End | None:
        left = [(known.left, rank) for rank, known in self.ranks.items() if known.left]
        failed = [(entry, rank) for entry, rank in left if entry[1] != 0]
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
        # A reason that a rank gave itself comes first: `_failed` waits for it.
        if any(known.left and known.left[1] and not known.is_agreed for known in self._all()):
            return None
        dead = [(known.died, rank) for rank, known in self.ranks.items() if known.died]
        if not dead or now < min(dead)[0][0]:
            return None
        (_, how), rank = min(dead)
        return End(ExitCode.MACHINE, f"{self._name(rank)} {how}.", "lost", rank)

    def _incomplete(self, now: float) -> End | None:
        if self.is_complete or now - self.began < self.limits.rendezvous:
            return None
        absent = [rank for rank in range(self.world_size) if rank not in self.ranks]
        numbers = sorted({rank // self.local_size for rank in absent})
        nodes = [self.nodes[n] if n < len(self.nodes) else f"node number {n}" for n in numbers]
        joined = ", ".join(sorted({known.host for known in self._all()})) or "none"
        reason = (
            f"{', '.join(nodes)} ({_ranks(absent)}) did not join within "
            f"{format_seconds(self.limits.rendezvous)} (train.rendezvous_seconds); "
            f"joined: {joined}."
        )
        if self.refused:
            reason += f"\n  {', '.join(sorted(self.refused))} was refused, {OTHER_SECRET}"
        return End(ExitCode.MACHINE, reason, "lost")

    def _different(self) -> End | None:
        if not self.is_complete:
            return None
        reference = self.ranks[0]
        lines = []
        for fact, here in reference.facts.items():
            others: dict[str, list[str]] = {}
            for _, known in sorted(self.ranks.items()):
                there = known.facts.get(fact, "nothing")
                if there != here and known.host not in others.setdefault(there, []):
                    others[there].append(known.host)
            for there, hosts in others.items():
                lines.append(f"  {fact}: {here} on {reference.host}, {there} on {', '.join(hosts)}")
        if not lines:
            return None
        reason = "\n".join(["The nodes do not run the same thing.", *lines])
        return End(ExitCode.MACHINE, reason, "failed")

    def _silent(self, now: float) -> End | None:
        silent = {
            rank: now - max(known.last_received, self.since)
            for rank, known in self.ranks.items()
            if not known.left
        }
        lost = [rank for rank, seconds in silent.items() if seconds > self.limits.lost]
        if not lost:
            return None
        longest = max(silent[rank] for rank in lost)
        return End(
            ExitCode.MACHINE,
            f"No heartbeat from {self._names(lost)} for {longest:.0f} s: "
            "the machine or its network is down.",
            "lost",
        )

    def _stalled(self, now: float) -> End | None:
        """Ends the run when ranks stall; names those that block the others."""
        here = {rank: known for rank, known in self.ranks.items() if not known.left}
        late = {
            rank: known
            for rank, known in here.items()
            if known.limit is not None and min(known.standing, now - self.since) > known.limit
        }
        if not late:
            return None
        behind = min(known.step for known in late.values())
        # Ranks that wait in a step are not late while another rank is busy in a phase with a
        # limit of its own, such as generating samples.
        busy = [known for rank, known in here.items() if rank not in late]
        busy = [known for known in busy if known.phase not in (*SHORT, "data")]
        if all(known.phase in SHORT for known in late.values()) and any(
            known.step <= behind for known in busy
        ):
            return None
        slow = [r for r, known in late.items() if known.step == behind and known.phase not in SHORT]
        first = late[min(slow or late)]
        blamed = "; no single rank is behind" if self.world_size > 1 else ""
        if slow and self.world_size > 1:
            verb = "blocks" if len(slow) == 1 else "block"
            blamed = f"; {self._names(slow)} {verb} the other ranks"
        places = sorted(self.ranks.items(), key=lambda item: (item[0] not in slow, item[0]))
        where = "; ".join(
            f"{self._place(rank)}: {known.phase}, step {known.step}, for {known.standing:.0f} s"
            for rank, known in places[:16]
        )
        return End(
            ExitCode.MACHINE,
            f"No progress for {first.standing:.0f} s in the phase {first.phase!r} "
            f"(limit {first.limit:.0f} s){blamed}.\n"
            f"  {where}\n  The stacks of every rank are in RUN/logs/rank_*.log.",
            "stalled",
            slow[0] if len(slow) == 1 and self.world_size > 1 else None,
        )

    def _all(self) -> Iterable[Member]:
        return self.ranks.values()

    def _name(self, rank: int) -> str:
        known = self.ranks[rank]
        pid = f"pid {known.pid}" if known.pid else ""
        if self.is_one_node:
            return f"rank {rank} ({pid})" if pid else f"rank {rank}"
        return f"rank {rank} on {known.host} ({', '.join(filter(None, (known.address, pid)))})"

    def _place(self, rank: int) -> str:
        return f"rank {rank}" if self.is_one_node else f"rank {rank} on {self.ranks[rank].host}"

    def _names(self, ranks: Iterable[int]) -> str:
        """`node2 (10.0.0.2, ranks 8, 9)`, one entry for each host."""
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
