"""The agent, a small process beside each rank: `python -m wikillm.supervise.agent SOCKET MEMORY`.

SOCKET and MEMORY are descriptors that the rank passes on. The agent reads the rank's heartbeat,
reports to the coordinator, receives the verdict, and writes the rank's record. It is a process and
not a thread, so that it also reports a rank that holds its interpreter lock for long, and does not
slow down steps. To end the run, the agent requests the rank to exit. A rank that does
not exit gets SIGUSR2, at which faulthandler writes its stacks, and is killed.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from wikillm.core.errors import ExitCode, MachineError
from wikillm.supervise.alerts import Alerts, event_of
from wikillm.supervise.coordinator import SUSPENDED_SECONDS, TICK, Coordinator
from wikillm.supervise.coordinator_link import ANSWER_SECONDS, CoordinatorLink
from wikillm.supervise.exit_file import print_end, write_exit
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.membership import STOPPED_AT_ONCE, End, Limits, Membership
from wikillm.supervise.network import listen, listen_here
from wikillm.supervise.oom import OomWatch
from wikillm.supervise.records import (
    UNKNOWN_END,
    Process,
    RankRecord,
    Recorder,
    end_of,
    handle_of,
)
from wikillm.supervise.wire import Message, Wire

EXIT_SECONDS = 10.0  # from the request to exit until the rank is killed
ACKNOWLEDGE_SECONDS = 3.0
"""Seconds from the request to the kill if the rank does not acknowledge the request: the rank is
suspended, or a library blocks its interpreter."""
STACKS_SECONDS = 0.5  # for faulthandler to write the stacks of a rank that does not respond
COLLECT_SECONDS = 0.5  # until the kernel reports how a process ended


class Agent:
    """Supervises one rank from a process beside it.

    Args:
        rank_wire: the socket to the rank.
        heartbeat: the rank's shared memory.
        setup: the rank's first message, see `settings.agent_setup`.
    """

    def __init__(self, rank_wire: Wire, heartbeat: Heartbeat, setup: Message) -> None:
        self.rank_wire = rank_wire
        self.heartbeat = heartbeat
        self.setup = setup
        self.rank = int(setup["rank"])
        self.pid = int(setup["pid"])
        self.limits = Limits(**setup["limits"])
        self.interval = max(1.0, setup["world_size"] / 50)
        self.process = Process(**setup["process"])  # the rank, which may have ended already
        self._pidfd = handle_of(self.pid) if self.process.is_alive() else None
        self._oom = OomWatch(self.pid)
        self.began = time.monotonic()
        self.coordinator: Coordinator | None = None  # only on rank 0
        self.link = CoordinatorLink(setup, self.limits, self.interval)
        self._recorder: Recorder | None = None
        self._alerts = Alerts(**setup["alerts"])
        size = setup["world_size"]
        rank = (self.rank, setup["local_rank"], size, self.process, setup["interface"])
        self._start_record = RankRecord(*rank, "start", 0, 0.0, max(5.0, size / 20), 0.0)
        self._last_beat = 0.0
        self._exited: End | None = None  # how the rank ended
        self._rank_gone = False
        self._verdict: End | None = None  # the reason for which the rank was requested to exit
        self._reports = False  # this rank reports the verdict to the user
        self._kill_at = 0.0  # when to kill the rank; 0 without a verdict
        self._last_check = time.monotonic()

    def serve(self) -> None:
        """Run until the rank has ended."""
        if self.rank == 0:
            self._start_coordinator()
        while not self._rank_gone:
            if time.monotonic() - self._last_check > SUSPENDED_SECONDS:
                self.link.restart_silence()
            self._last_check = time.monotonic()
            wires = [wire for wire in (self.rank_wire, self.link.wire) if wire is not None]
            ready = select.select(wires, [], [], TICK)[0]
            if self.rank_wire in ready:
                self.handle(self.rank_wire.receive())
                self._rank_gone = self._rank_gone or self.rank_wire.closed
            if self.link.wire in ready:
                self._read_coordinator()
            self._check()
        self._close()

    def _start_coordinator(self) -> None:
        setup = self.setup
        try:
            if self.link.is_local:
                listener = listen_here(setup["job"])
            else:
                port = int(setup["master_port"])
                listener = listen(port, setup["master_address"], setup["address"])
        except MachineError as error:
            self._end(End(error.exit_code, str(error), "failed"))
            return
        size = setup["world_size"]
        nodes = tuple(setup["nodes"])
        members = Membership(size, setup["local_size"], self.limits, self.began, nodes)
        secret = bytes.fromhex(setup["secret"])
        self.coordinator = Coordinator(listener, members, secret, setup["job"], self.interval)
        self.coordinator.start()

    def _check(self) -> None:
        """Notice the rank's end, kill it when that is due, and keep the coordinator informed."""
        now = time.monotonic()
        # A forked child may keep the rank's end of the socket open: ask the kernel as well.
        if not self.process.is_alive():
            self._rank_gone = True
            return
        if self._kill_at and now > self._kill_at:
            self._kill()
            return
        if self._exited is not None or self._kill_at:
            return
        if not self.link.accepted:
            why = self.link.find(now)
        else:
            why = self.link.why_lost(now)
            if now - self._last_beat >= self.interval:
                self._last_beat = now
                self._send_beat()
        if why is not None:
            self._end(End(ExitCode.MACHINE, why, "lost"), lost_main=True)

    def _send_beat(self) -> None:
        self._oom.update()
        progress = self.heartbeat.read()
        phase = progress.phase
        if self.process.is_suspended():
            phase += " (stopped by a signal)"
        beat = {"beat": self.rank, "phase": phase, "step": progress.step}
        limits = {"limit": progress.limit(self.limits.stall), "median": progress.median}
        self.link.send({**beat, "standing": progress.standing, **limits})

    def _read_coordinator(self) -> None:
        for message in self.link.receive():
            if "welcome" in message:
                self.rank_wire.send(message)
            elif "end" in message:
                self._end(End.from_message(message), reports=message.get("speaker") == self.rank)

    def handle(self, messages: list[Message]) -> None:
        """Handle messages from the rank."""
        for message in messages:
            if "run" in message:
                self._alerts.opened = True
                self._recorder = Recorder(Path(message["run"]), self._record, self._end_at_once)
                self._recorder.start()
            elif "acknowledged" in message and self._kill_at:
                self._kill_at += EXIT_SECONDS - ACKNOWLEDGE_SECONDS
            elif "bye" in message:
                code = int(message["bye"])
                self._exited = End(code, str(message["reason"]), event_of(code))
                is_early = not self.link.accepted and code != 0
                if not is_early:
                    self.link.send(message)
                if self._recorder is not None:
                    self._recorder.close(self._record())
                if self.rank == 0:
                    self._alert(self._exited)
                self.rank_wire.send({"noted": True})
                # The other ranks need the reason of a rank that fails before its agent connected.
                if is_early:
                    self._connect_late()
                    self.link.send(message)

    def _record(self) -> RankRecord:
        return self._start_record.now(self.heartbeat.read(), self._exited)

    def _end_at_once(self) -> None:
        self._end(STOPPED_AT_ONCE, reports=self.rank == 0)

    def _end(self, end: End, *, lost_main: bool = False, reports: bool = False) -> None:
        """Request the rank to exit; it writes its stacks first.

        Args:
            lost_main: rank 0 is lost, so the first rank of each node reports to the user.
            reports: this rank reports to the user.
        """
        if self._exited is not None or self._kill_at:
            return
        self._kill_at = time.monotonic() + ACKNOWLEDGE_SECONDS
        is_first_here = self.setup["local_rank"] == 0
        # Without rank 0's agent, rank 1 and the first rank of each node try to send the alert.
        sends_alert = self.rank == 0 or (lost_main and (self.rank == 1 or is_first_here))
        alerts = sends_alert and self._alerts.wants(end.event)
        self._reports = reports or (lost_main and is_first_here)
        self._verdict = end
        self.rank_wire.send({**end.to_message(), "reports": self._reports, "alerts": alerts})
        if alerts:
            self._alert(end)
            self.rank_wire.send({"noted": True})

    def _alert(self, end: End) -> None:
        self._alerts.end(end.event, end.code, end.reason, self.heartbeat.read().step)

    def _kill(self) -> None:
        """Kill a rank that did not exit: it is suspended, or a library blocks its interpreter."""
        if self._recorder is not None:
            # faulthandler needs no interpreter lock, but races with running threads, so it is only
            # used on a rank that does not respond. `Supervisor.at` registers its handler.
            self.process.send(signal.SIGUSR2)
            time.sleep(STACKS_SECONDS)
        self.process.send(signal.SIGKILL)
        self._rank_gone = True

    def _report(self, end: End, *, reports: bool) -> None:
        """Write exit.json and print the reason, for a rank that cannot do so itself."""
        if self._recorder is not None:
            step = self.heartbeat.read().step
            write_exit(self._recorder.run_dir, end, self.rank, step, keep=True)
        if reports:
            print_end(end)

    def _how_it_ended(self) -> str | None:
        """How the rank ended. Waits a moment: its socket closes just before it becomes a zombie."""
        deadline = time.monotonic() + COLLECT_SECONDS
        while True:
            how = end_of(self.pid, self._pidfd)
            if how is not None or not self.process.exists() or time.monotonic() > deadline:
                return how
            time.sleep(0.005)

    def _connect_late(self) -> None:
        """Connect to the coordinator, to report a rank that ended before its agent connected."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self.link.accepted and time.monotonic() < deadline:
            self.link.find(time.monotonic())
            if self.link.wire is None:
                time.sleep(0.05)
            elif select.select([self.link.wire], [], [], 0.05)[0]:
                self._read_coordinator()

    def _close(self) -> None:
        """Report how the rank ended. On rank 0, also serve until the other ranks have exited."""
        is_unexplained = self._exited is None and self._verdict is None
        if self._exited is None:
            known = self._how_it_ended()
            death = End(ExitCode.MACHINE, self._oom.explain(known or UNKNOWN_END), "lost")
            self._exited = self._verdict or death
            self._report_death(death.reason, known)
        # Send what is buffered. On rank 0 the coordinator needs the connection a while longer.
        wire = self.link.wire
        if wire is not None:
            with suppress(OSError):
                wire.sock.setblocking(True)
                wire.sock.settimeout(1.0)
            wire.flush()
            if self.coordinator is None:
                wire.close()
        if self.coordinator is not None:
            timeout = 5.0 if self._verdict else self.limits.leave + 10.0
            is_connected = wire is not None
            end = self.coordinator.wait(
                timeout, own=int(is_connected), for_verdict=is_unexplained and is_connected
            )
            # Report the verdict on this rank's death here: there may be no other rank to do it.
            if is_unexplained and end is not None:
                self._report(end, reports=self.coordinator.membership.reporter() == 0)
                self._alert(end)
        if is_unexplained and self.rank == 0:
            self._alert(self._exited)

    def _report_death(self, how: str, known: str | None) -> None:
        """Report the end of a rank that did not report its exit. `known`: what the kernel said."""
        if self._recorder is not None:
            self._recorder.close(self._record())
        if self._verdict is None:
            if not self.link.accepted:
                self._connect_late()
            self.link.send({"died": how, "known": known is not None})
        elif known is None or "signal" in known:  # a killed rank could not write the verdict itself
            self._report(self._verdict, reports=self._reports)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the agent ends when its rank does
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    heartbeat = Heartbeat(int(sys.argv[2]))
    messages: list[Message] = []
    while not messages and not wire.closed:
        select.select([wire], [], [], 5.0)
        messages = wire.receive()
    if messages:
        agent = Agent(wire, heartbeat, messages[0])
        agent.handle(messages[1:])
        agent.serve()


if __name__ == "__main__":
    main()
