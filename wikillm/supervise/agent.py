"""The agent: a small process beside each rank, `python -m wikillm.supervise.agent SOCKET_FD BOARD_FD`.

It reads the heartbeat, tells the hub, hears the verdict, and writes the rank's record. It is no thread of the rank, so that an
interpreter lock held through a long write never looks like a lost machine, and the rank's steps pay nothing for it. When
the run has to end it asks for stacks (SIGUSR2, faulthandler), tells the rank to leave, and kills it if it cannot.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from wikillm.core.errors import ExitCode, MachineError
from wikillm.supervise.coordinator import SUSPENDED_SECONDS, TICK, Coordinator
from wikillm.supervise.exit_file import say_end, write_exit
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.membership import Limits, Membership
from wikillm.supervise.network import PORTS_TRIED, connect_here, listen, listen_here
from wikillm.supervise.records import NO_WORD, Process, RankRecord, Recorder, end_of, handle_of
from wikillm.supervise.wire import Message, SealedWire, Wire

ANSWER_SECONDS = 3.0  # how long a port may take to say that it is the hub
OBEY_SECONDS = 10.0  # from the word to leave until the rank is killed
HEAR_SECONDS = 3.0  # the same where it does not even hear: a library holds its interpreter's lock, or it is suspended
STACKS_SECONDS = 0.5  # until the stacks of a rank that does not answer are written
COLLECT_SECONDS = 0.5  # how long it may take until the kernel says how a process ended
HUB_GONE_WAITS = 3.0  # a verdict may still be in the socket of somebody else


class Agent:
    """`told` is the rank's first message: see Supervisor._introduce."""

    def __init__(self, rank_wire: Wire, heartbeat: Heartbeat, told: Message) -> None:
        self.rank_wire, self.heartbeat, self.told = rank_wire, heartbeat, told
        self.rank, self.pid = int(told["rank"]), int(told["pid"])
        self.limits = Limits(**told["limits"])
        self.interval = max(1.0, told["world_size"] / 50)
        self.process = Process(**told["process"])  # it may have ended already
        self._handle = handle_of(self.pid) if self.process.is_alive() else None
        self.began = time.monotonic()
        self.hub: Coordinator | None = None
        self.hub_wire: SealedWire | None = None
        self._secret = bytes.fromhex(told["secret"])
        self._strangers: set[int] = (
            set()
        )  # ports where something answered that does not know the secret
        self._recorder: Recorder | None = None
        self._attempt, self._answer_by = 0, 0.0
        self._port = 0  # of the latest attempt
        self._accepted, self._beat, self._heard = False, 0.0, time.monotonic()
        self._hub_gone: float | None = None
        self._left: tuple[int, str] | None = None
        self._rank_gone, self._kill_at = False, 0.0
        self._verdict: dict[str, Any] | None = None
        self._looked = time.monotonic()

    @property
    def _is_local(self) -> bool:
        """All ranks are on this machine: no network, nobody to be lost with it."""
        return self.told["master_port"] is None

    def serve(self) -> None:
        """Until the rank has gone."""
        if self.rank == 0:
            try:
                listener = self._listen()
            except MachineError as error:
                self._end(error.exit_code, str(error))
            else:
                roll = Membership(
                    self.told["world_size"],
                    self.told["local_size"],
                    self.limits,
                    self.began,
                    tuple(self.told["nodes"]),
                )
                self.hub = Coordinator(
                    listener, roll, self._secret, self.told["job"], self.interval
                )
                self.hub.start()
        while not self._rank_gone:
            if time.monotonic() - self._looked > SUSPENDED_SECONDS:
                self._heard = time.monotonic()  # it was silent here as well
            self._looked = time.monotonic()
            wires = [self.rank_wire] + ([self.hub_wire] if self.hub_wire is not None else [])
            ready = select.select(wires, [], [], TICK)[0]
            if self.rank_wire in ready:
                self._hear_rank()
            if self.hub_wire is not None and self.hub_wire in ready:
                self._hear_hub(self.hub_wire)
            self._look()
        self._close()

    def _listen(self) -> socket.socket:
        if self._is_local:
            return listen_here(self.told["job"])
        return listen(
            int(self.told["master_port"]), self.told["master_address"], self.told["address"]
        )

    def _look(self) -> None:
        now = time.monotonic()
        if (
            not self.process.is_alive()
        ):  # a process that it has forked may hold its end of the socket open
            self._rank_gone = True
            return
        if self._kill_at and now > self._kill_at:
            self._kill()
            return
        if self._left is not None or self._kill_at:
            return
        if not self._accepted:
            self._find_hub(now)
        elif now - self._beat >= self.interval and self.hub_wire is not None:
            self._beat = now
            progress = self.heartbeat.read()
            limit = progress.limit(self.limits.stall)
            phase = (
                f"{progress.phase} (stopped by a signal)"
                if self.process.is_suspended()
                else progress.phase
            )
            beat = {
                "beat": self.rank,
                "phase": phase,
                "step": progress.step,
                "standing": progress.standing,
            }
            self.hub_wire.send({**beat, "limit": limit, "median": progress.median})
        if self._accepted:
            self._judge_hub(now)

    def _judge_hub(self, now: float) -> None:
        if self._is_local:
            return  # where rank 0 has gone its own agent has said so; where that is gone too, the run goes on unwatched
        where = f"rank 0 on the first node, {self.told['master']} ({self.told['master_address']})"
        if self._hub_gone is not None:
            if now - self._hub_gone > HUB_GONE_WAITS:
                self._end(
                    ExitCode.MACHINE,
                    f"The connection to {where} was closed: it is gone.",
                    lost_main=True,
                )
        elif now - self._heard > self.limits.lost + self.interval:
            reason = f"No sign of life from {where} for {now - self._heard:.0f} s: it, or the network between, is gone."
            self._end(ExitCode.MACHINE, f"{self.process.host} says: {reason}", lost_main=True)

    def _find_hub(self, now: float) -> None:
        """One attempt a call, port after port, until the hub of this job answers."""
        if self.hub_wire is not None and not self.hub_wire.closed and now < self._answer_by:
            return
        if not self._is_local and now - self.began > self.limits.meet + 5.0:
            self._end(ExitCode.MACHINE, self._no_answer(), lost_main=True)
            return
        if self.hub_wire is not None:
            self.hub_wire.close()
            self.hub_wire = None
        sock = self._connect()
        if sock is None:
            return
        self.hub_wire = SealedWire(sock, self._secret, self.told["job"], is_coordinator=False)
        self._answer_by = now + ANSWER_SECONDS
        hello = {"hello": self.rank, "host": self.process.host, "pid": self.pid}
        self.hub_wire.send({**hello, "address": self.told["address"], "facts": self.told["facts"]})

    def _connect(self) -> socket.socket | None:
        """To the next place where the hub may be; None where nobody answers there."""
        for _ in range(PORTS_TRIED if self._is_local else 1):
            number = self._attempt % PORTS_TRIED
            self._attempt += 1
            with suppress(OSError):
                if self._is_local:
                    return connect_here(self.told["job"], number)
                self._port = int(self.told["master_port"]) + 1 + number
                sock = socket.create_connection(
                    (self.told["master_address"], self._port), timeout=1.0
                )
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        return None

    def _no_answer(self) -> str:
        first = int(self.told["master_port"]) + 1
        where = f"{self.told['master']} ({self.told['master_address']}, ports {first} to {first + PORTS_TRIED - 1})"
        said = f"{self.process.host} got no answer from the first node, {where}, for {self.limits.meet:.0f} s."
        if self._strangers:
            ports = ", ".join(map(str, sorted(self._strangers)))
            said += (
                f"\n  A supervisor answered at port {ports}, but with another secret than this node's: run.dir is not the same "
                "folder on both nodes, WIKILLM_RUN_SECRET differs, or that is another run."
            )
        return said

    def _hear_hub(self, wire: SealedWire) -> None:
        for message in wire.receive():
            self._heard = time.monotonic()
            if "hub" in message or "welcome" in message or "end" in message:
                self._accepted = True
            if "welcome" in message:
                self.rank_wire.send(message)
            elif "end" in message:
                self._end(
                    int(message["end"]),
                    str(message["reason"]),
                    speaks=message.get("speaker") == self.rank,
                )
        if wire.closed:
            if wire.has_answered and not wire.is_proven:
                self._strangers.add(self._port)
            wire.close()
            self.hub_wire = None
            if self._accepted:
                self._hub_gone = time.monotonic()

    def _hear_rank(self) -> None:
        self.hear(self.rank_wire.receive())
        if self.rank_wire.closed:
            self._rank_gone = True

    def hear(self, messages: list[Message]) -> None:
        """What the rank says."""
        for message in messages:
            if "run" in message:
                self._recorder = Recorder(Path(message["run"]), self._record, self._stop)
                self._recorder.start()
            elif "hears" in message and self._kill_at:
                self._kill_at += OBEY_SECONDS - HEAR_SECONDS
            elif "bye" in message:
                self._left = (int(message["bye"]), str(message["reason"]))
                if self.hub_wire is not None:
                    self.hub_wire.send(message)
                if self._recorder is not None:
                    self._recorder.close(self._record())
                self.rank_wire.send({"noted": True})

    def _record(self) -> RankRecord:
        progress, left = self.heartbeat.read(), self._left
        return RankRecord(
            self.rank, self.told["local_rank"], self.told["world_size"], self.process, self.told["interface"],
            progress.phase, progress.step, progress.standing, max(5.0, self.told["world_size"] / 20), time.time(),
            None if left is None else {"code": left[0], "reason": left[1]},
        )  # fmt: skip

    def _stop(self, at_once: bool) -> None:
        """`wikillm stop` asked: save and leave, or leave."""
        if at_once:
            reason = "Ended at once by `wikillm stop --now`; nothing was saved."
            self._end(ExitCode.STOPPED, reason, speaks=self.rank == 0)
        else:
            self.process.send(signal.SIGTERM)

    def _end(
        self, code: int, reason: str, *, lost_main: bool = False, speaks: bool = False
    ) -> None:
        """The rank has to leave: it leaves its stacks, says why where it is the one to speak, and ends.

        Args:
            lost_main: rank 0 is gone, or cannot be heard: the first rank of this node tells the user.
            speaks: this rank tells the user.
        """
        if self._left is not None or self._kill_at:
            return
        self._kill_at = time.monotonic() + HEAR_SECONDS
        speaks = speaks or (lost_main and self.told["local_rank"] == 0)
        self._verdict = {"end": code, "reason": reason, "speaks": speaks}
        self.rank_wire.send(self._verdict)

    def _kill(self) -> None:
        """It did not leave by itself: it is stopped, or holds its interpreter's lock. Say in its place why it ends."""
        if self._recorder is not None:
            # faulthandler needs no interpreter lock. It would race with threads that run: only here, where none answers.
            self.process.send(signal.SIGUSR2)  # registered together with the run directory
            time.sleep(STACKS_SECONDS)
        self.process.send(signal.SIGKILL)
        self._rank_gone = True

    def _tell(self, code: int, reason: str, *, speaks: bool) -> None:
        """What the rank can no longer say: to exit.json, and to the user."""
        if self._recorder is not None:
            write_exit(
                self._recorder.run_dir,
                code,
                reason,
                self.rank,
                self.heartbeat.read().step,
                keep=True,
            )
        if speaks:
            say_end(code, reason)

    def _how_it_ended(self) -> str | None:
        """Asked when its socket has closed, a moment before the process is a zombie; None where nobody knows."""
        deadline = time.monotonic() + COLLECT_SECONDS
        while (
            (how := end_of(self.pid, self._handle)) is None
            and self.process.exists()
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        return how

    def _make_known(self) -> None:
        """The rank ended before this agent had found the hub: find it now, so that the others are told."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._accepted and time.monotonic() < deadline:
            self._find_hub(time.monotonic())
            if self.hub_wire is None:
                time.sleep(0.05)
            elif select.select([self.hub_wire], [], [], 0.05)[0]:
                self._hear_hub(self.hub_wire)

    def _close(self) -> None:
        """The rank has gone: say how, and stay for the others where the hub is."""
        in_silence = self._left is None and self._verdict is None
        if self._left is None:
            verdict, known = self._verdict, self._how_it_ended()
            how = known or NO_WORD
            self._left = (
                (int(verdict["end"]), str(verdict["reason"]))
                if verdict
                else (int(ExitCode.MACHINE), how)
            )
            if self._recorder is not None:
                self._recorder.close(self._record())
            if verdict is not None and (
                known is None or "signal" in known
            ):  # it had no turn to say it
                self._tell(self._left[0], self._left[1], speaks=bool(verdict["speaks"]))
            if in_silence and not self._accepted:
                self._make_known()
            if self.hub_wire is not None and verdict is None:
                self.hub_wire.send({"died": how, "known": known is not None})
        if self.hub_wire is not None:
            with suppress(OSError):
                self.hub_wire.sock.setblocking(True)
                self.hub_wire.sock.settimeout(1.0)
            self.hub_wire.flush()
            if self.hub is None:
                self.hub_wire.close()
        if self.hub is not None:
            patience = 5.0 if self._verdict else self.limits.leave + 10.0
            is_told = self.hub_wire is not None
            end = self.hub.wait(patience, own=int(is_told), for_verdict=in_silence and is_told)
            if in_silence and end is not None:  # nobody may be left to say it
                self._tell(end.code, end.reason, speaks=self.hub.roll.speaker() == 0)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it goes when its rank does
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    heartbeat = Heartbeat(int(sys.argv[2]))
    told: list[Message] = []
    while not told and not wire.closed:
        select.select([wire], [], [], 5.0)
        told = wire.receive()
    if told:
        agent = Agent(wire, heartbeat, told[0])
        agent.hear(told[1:])
        agent.serve()


if __name__ == "__main__":
    main()
