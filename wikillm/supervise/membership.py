"""The hub's judgement, without sockets or clocks of its own: who is there, who is lost, who stands still.

Facts come in (`hello`, `beat`, `bye`, `died`), `verdict(now)` says whether the run has to end, with which code and why.
A reason that a rank gave itself goes before one that is inferred, so each verdict waits a moment for a better one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wikillm.core.errors import ExitCode
from wikillm.core.units import format_seconds

AGREED = (
    ExitCode.DIVERGED,
    ExitCode.STOPPED,
)  # raised on all ranks together, which then leave together
FAILED_WAITS = (
    5.0  # seconds between a rank's own error and the end of the others: they may meet the same one
)
MOST_REFUSED = 16  # addresses that are remembered
STOPPED_WAITS = (
    0.5  # the same for a rank that was stopped before training, where there is nothing to agree on
)
DIED_WAITS = (
    2.5  # between a process that ended in silence and the end: its neighbour may have said why
)
KILLED_WAITS = 0.5  # the same where it is known how the process ended
SHORT = ("step", "first step")  # phases in which a rank waits for the others


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `meet`: until every rank must be there; `lost`: without a sign of life; `leave`: between two exits."""

    meet: float
    lost: float
    stall: float
    leave: float


@dataclass(frozen=True, slots=True)
class End:
    """The run is over, for all ranks."""

    code: int
    reason: str


@dataclass(slots=True)
class Rank:
    """What the hub knows of one rank; times are the hub's clock."""

    host: str
    address: str
    facts: dict[str, str]
    heard: float
    phase: str = "start"
    step: int = 0
    standing: float = 0.0
    limit: float | None = None
    median: float = 0.0
    pid: int = 0  # 0: it did not say
    left: tuple[float, int, str] | None = None  # when, exit code, reason: it said goodbye
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
    ranks: dict[int, Rank] = field(default_factory=dict)
    refused: set[str] = field(
        default_factory=set
    )  # addresses that spoke the protocol with another secret
    since: float = float(
        "-inf"
    )  # nothing is counted from before: the whole job was suspended until then

    @property
    def is_complete(self) -> bool:
        return len(self.ranks) == self.world_size

    @property
    def is_one_node(self) -> bool:
        return self.world_size == self.local_size

    def hello(
        self, rank: int, host: str, address: str, facts: dict[str, str], now: float, pid: int = 0
    ) -> None:
        self.ranks[rank] = Rank(host, address, facts, now, pid=pid)

    def refuse(self, address: str) -> None:
        if len(self.refused) < MOST_REFUSED:
            self.refused.add(address)

    def beat(self, rank: int, message: dict[str, Any], now: float) -> None:
        known = self.ranks[rank]
        known.heard, known.phase, known.step = now, str(message["phase"]), int(message["step"])
        known.standing, known.limit, known.median = (
            message["standing"],
            message["limit"],
            message["median"],
        )

    def bye(self, rank: int, code: int, reason: str, now: float, *, is_agreed: bool = True) -> None:
        if self.ranks[rank].left is None:
            self.ranks[rank].left = (now, code, reason)
            self.ranks[rank].is_agreed = is_agreed and code in AGREED

    def died(self, rank: int, how: str, now: float, *, is_known: bool = False) -> None:
        """`how` follows the rank's name: "was killed by signal 9". `is_known`: no guess, nobody knows better."""
        if self.ranks[rank].left is None and self.ranks[rank].died is None:
            self.ranks[rank].died = (now + (KILLED_WAITS if is_known else DIED_WAITS), how)

    def forget(self, rank: int) -> None:
        """It goes on unwatched: its agent is gone, it is not."""
        self.ranks.pop(rank, None)

    def speaker(self) -> int:
        """Who tells the user: the first rank that can."""
        return min(
            (rank for rank, known in self.ranks.items() if not known.left and not known.died),
            default=0,
        )

    def verdict(self, now: float) -> End | None:
        """Asked several times a second; None while nothing is wrong."""
        return (
            self._failed(now)
            or self._died(now)
            or self._incomplete(now)
            or self._different()
            or self._silent(now)
            or self._stalled(now)
        )

    def _failed(self, now: float) -> End | None:
        left = [
            (entry, rank)
            for rank, known in self.ranks.items()
            if (entry := known.left) and entry[1] != 0
        ]
        if not left:
            return None
        (when, code, reason), rank = min(left)
        if self.ranks[rank].is_agreed:
            wait = self.limits.leave
        else:
            wait = STOPPED_WAITS if code == ExitCode.STOPPED else FAILED_WAITS
        return End(code, f"{self._name(rank)} ended: {reason}") if now - when >= wait else None

    def _died(self, now: float) -> End | None:
        dead = [(entry, rank) for rank, known in self.ranks.items() if (entry := known.died)]
        said = any(
            known.left and known.left[1] and not known.is_agreed for known in self.ranks.values()
        )
        if (
            said or not dead or now < min(dead)[0][0]
        ):  # what a rank says of itself goes first: `_failed` waits for it
            return None
        (_, how), rank = min(dead)
        return End(ExitCode.MACHINE, f"{self._name(rank)} {how}.")

    def _incomplete(self, now: float) -> End | None:
        if self.is_complete or now - self.began < self.limits.meet:
            return None
        absent = [rank for rank in range(self.world_size) if rank not in self.ranks]
        there = sorted({known.host for known in self.ranks.values()})
        who = self._name_absent(absent)
        limit = format_seconds(self.limits.meet)
        reason = (
            f"{who} did not come within {limit} (train.meet_seconds); there: {', '.join(there)}."
        )
        if self.refused:
            reason += (
                f"\n  {', '.join(sorted(self.refused))} came with another secret and was sent away: run.dir is not the same "
                "folder there, WIKILLM_RUN_SECRET differs, or that is another run."
            )
        return End(ExitCode.MACHINE, reason)

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
            lines += [
                f"{fact}: {here} on {reference.host}, {there} on {', '.join(h)}"
                for there, h in others.items()
                if h
            ]
        if not lines:
            return None
        return End(
            ExitCode.MACHINE,
            "The nodes do not run the same thing.\n" + "\n".join(f"  {line}" for line in lines),
        )

    def _silent(self, now: float) -> End | None:
        silent = {
            rank: now - max(known.heard, self.since)
            for rank, known in self.ranks.items()
            if not known.left
        }
        gone = [rank for rank, seconds in silent.items() if seconds > self.limits.lost]
        if not gone:
            return None
        longest = max(silent[rank] for rank in gone)
        return End(
            ExitCode.MACHINE,
            f"No sign of life from {self._names(gone)} for {longest:.0f} s: the machine or its network is gone.",
        )

    def _stalled(self, now: float) -> End | None:
        """Those that stand still; if they stand at different places, the ones that hold the others up come first."""
        here = {rank: known for rank, known in self.ranks.items() if not known.left}
        late = {
            rank: known
            for rank, known in here.items()
            if known.limit is not None and min(known.standing, now - self.since) > known.limit
        }
        if not late:
            return None
        behind = min(known.step for known in late.values())
        waited_for = [
            known
            for rank, known in here.items()
            if rank not in late and known.phase not in (*SHORT, "data")
        ]
        if all(known.phase in SHORT for known in late.values()) and any(
            k.step <= behind for k in waited_for
        ):
            return None  # one rank generates samples, say, and has a limit of its own
        slow = [r for r, known in late.items() if known.step == behind and known.phase not in SHORT]
        first = late[min(slow or late)]
        where = "; ".join(
            f"{self._place(rank)}: {known.phase}, step {known.step}, for {known.standing:.0f} s"
            for rank, known in sorted(
                self.ranks.items(), key=lambda item: (item[0] not in slow, item[0])
            )[:16]
        )
        blamed = (
            f"{self._names(slow)} {'holds' if len(slow) == 1 else 'hold'} the others up"
            if slow
            else "no rank is ahead"
        )
        return End(
            ExitCode.MACHINE,
            f"No progress for {first.standing:.0f} s in the phase {first.phase!r} (limit {first.limit:.0f} s); {blamed}.\n"
            f"  {where}\n  The stacks of every rank are in RUN/logs/rank_*.log.",
        )

    def _name(self, rank: int) -> str:
        known = self.ranks[rank]
        pid = f"pid {known.pid}" if known.pid else ""
        if self.is_one_node:
            return f"rank {rank} ({pid})" if pid else f"rank {rank}"
        return f"rank {rank} on {known.host} ({', '.join(filter(None, (known.address, pid)))})"

    def _place(self, rank: int) -> str:
        return f"rank {rank}" if self.is_one_node else f"rank {rank} on {self.ranks[rank].host}"

    def _names(self, ranks: Iterable[int]) -> str:
        """`node2 (10.0.0.2, ranks 8, 9)`, one entry a host."""
        if self.is_one_node:
            return ", ".join(self._name(rank) for rank in sorted(ranks))
        hosts: dict[tuple[str, str], list[int]] = {}
        for rank in sorted(ranks):
            hosts.setdefault((self.ranks[rank].host, self.ranks[rank].address), []).append(rank)
        return ", ".join(
            f"{host} ({address}, {_ranks(found)})" for (host, address), found in hosts.items()
        )

    def _name_absent(self, ranks: list[int]) -> str:
        numbers = sorted({rank // self.local_size for rank in ranks})
        names = [self.nodes[n] if n < len(self.nodes) else f"node number {n}" for n in numbers]
        return f"{', '.join(names)} ({_ranks(ranks)})"


def _ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 8-15`, `ranks 1, 3`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks))
