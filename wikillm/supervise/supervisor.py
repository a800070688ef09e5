"""The rank's side of supervision: mark the heartbeat, start the agent, exit at its request.

If all ranks are on one machine, the agents connect through a local socket: no port is used, and no
rank waits for the others. With `train.supervise=off` there is no agent and no time limit; a thread
of the rank writes the record that `wikillm status` and `wikillm stop` need.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from wikillm.core.child_environment import environment_with_wikillm
from wikillm.core.errors import MachineError, StoppedError
from wikillm.core.held_output import real_descriptors
from wikillm.core.log import logger, say, warn
from wikillm.core.world import World
from wikillm.supervise.alerts import WAIT_SECONDS
from wikillm.supervise.exit_file import end_with, is_agreed, print_end, write_exit
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.lost_rank import is_about_a_connection, lost_rank
from wikillm.supervise.membership import (
    DIED_WAITS,
    FAILED_WAITS,
    KILLED_WAITS,
    STOPPED_AT_ONCE,
    End,
)
from wikillm.supervise.network import Route, check_master_port, find_route, set_interface
from wikillm.supervise.records import INTERVAL, Process, RankRecord, Recorder
from wikillm.supervise.settings import SuperviseSettings, agent_setup, alerts_of, is_local
from wikillm.supervise.wire import Message, Wire

_FILE_SECONDS = 5.0  # for exit.json: its file system may be behind the lost link


class Supervisor:
    """Supervises one rank. `supervise` creates it, and the trainer marks its `heartbeat`."""

    def __init__(self, world: World, settings: SuperviseSettings) -> None:
        self.world = world
        self.settings = settings
        self.is_local = is_local(world, settings)
        self.is_active = settings.mode != "off" and (self.is_local or world.size > 1)
        self.heartbeat = Heartbeat()
        self.alerts = alerts_of(world, settings)
        self.route: Route | None = None
        self._wire: Wire | None = None
        self._recorder: Recorder | None = None
        self._run: Path | None = None
        self._stacks: IO[str] | None = None
        self._exited: End | None = None  # once this rank has reported its exit
        self._waited_for_reason = False
        self._alerts_now = False
        self._is_joining = not self.is_local
        self._answers: SimpleQueue[Message] = SimpleQueue()  # a welcome, or why joining failed
        self._noted = threading.Event()  # the agent has recorded this rank's exit, or has ended

    def start(
        self, versions: Callable[[], dict[str, str]], environ: Mapping[str, str] = os.environ
    ) -> None:
        """Start the agent; on several nodes wait until all ranks have joined. (all ranks)

        Raises MachineError if a rank does not join, or if versions, code or settings of the nodes
        differ.
        """
        world = self.world
        port = environ.get("MASTER_PORT", "")
        if world.size > 1 and world.is_main and port.isdecimal():
            check_master_port(int(port), environ)
        if world.is_main:
            for key, name in self.settings.alerts.missing(environ).items():
                warn(f"alerts.{key}: the environment has no {name}, so nothing is sent there")
        if not self.is_active:
            return
        if not self.is_local:
            self._join(versions(), environ)
            return
        try:
            self._start_agent(agent_setup(world, self.settings, None, None, {}, environ))
        except OSError as error:  # out of processes or descriptors
            warn(f"no supervisor: {error.strerror or error}; the run continues without it")
            self.is_active = False

    def _join(self, versions: dict[str, str], environ: Mapping[str, str]) -> None:
        """Find the route to the first node, and wait until all ranks have joined there."""
        world = self.world
        master = environ.get("MASTER_ADDR")
        port = environ.get("MASTER_PORT")
        if master is None or port is None:
            raise MachineError(
                f"WORLD_SIZE={world.size} is set, but MASTER_ADDR or MASTER_PORT is not.",
                fix="start with `deepspeed train.py ...` or `torchrun ...`",
            )
        self.route = find_route(master)
        is_remote = world.size != world.local_size
        name = set_interface(self.route) if is_remote else str(self.route.interface)
        setup = agent_setup(world, self.settings, self.route, int(port), versions, environ)
        self._start_agent(setup)
        answer = self._answers.get()
        if "welcome" not in answer:
            raise MachineError(str(answer["reason"]))
        hosts = answer["welcome"].items()
        nodes = ", ".join(f"{host} {address}" for host, (address, _) in hosts)
        limit = f"{self.settings.limits.lost:.0f} s"
        say(f"nodes      {nodes}; ranks meet through {name}; supervisor: node lost {limit}")

    def at(self, run: Path, log_file: Path) -> None:
        """Start to write records to `run` and stacks to `log_file`. Later calls do nothing."""
        if self._run is not None:
            return
        self._run = run
        self.alerts.opened = True
        if self.route is not None:
            logger.info("network: %s through %s", self.route.address, self.route.interface)
        if self._wire is not None:
            self._stacks = log_file.open("a", encoding="utf-8")
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
            self._wire.send({"run": str(run.absolute())})
            return
        self._recorder = Recorder(run, self._record, self._end_at_once)
        self._recorder.start()

    @contextmanager
    def explains(self) -> Iterator[None]:
        """Report an error in the block to the other ranks at once.

        After an error of a connection, wait for the reason why a rank was lost, and raise that.
        """
        try:
            yield
        except StoppedError as error:
            self.wait_for_reason(error)
            raise
        except (RuntimeError, OSError) as error:
            if self.world.size == 1 or not is_about_a_connection(error):
                self.leave(error)
                raise
            logger.error("a collective failed; waiting for the lost rank's name", exc_info=error)
            raise self._explain(error) from error
        except BaseException as error:
            self.leave(error)
            raise

    def wait_for_reason(self, error: StoppedError) -> None:
        """Wait for a verdict, since the launcher may have stopped this rank after another died."""
        is_first = error.is_alone and not self._waited_for_reason
        if is_first and self.is_active and self.world.size > 1:
            self._waited_for_reason = True
            time.sleep(KILLED_WAITS + 1.0)

    def _explain(self, error: BaseException) -> MachineError:
        """Why another rank ended. With an agent, a verdict ends this process during the wait."""
        if self.is_active:
            lost = 5.0 if self.is_local else self.settings.limits.lost
            time.sleep(FAILED_WAITS + DIED_WAITS + lost)
        else:
            deadline = time.monotonic() + DIED_WAITS
            while time.monotonic() < deadline:
                found = lost_rank(self._run, self.world.rank) if self._run else None
                if found is not None:
                    return found
                time.sleep(0.05)
        return MachineError(
            "The connection to another rank was lost, and no rank reported why.",
            got=str(error).splitlines()[0][:300],
            fix="read RUN/logs/rank_*.log; resume from the newest checkpoint: --resume auto",
        )

    def leave(self, error: BaseException | None) -> None:
        """Report exit code and reason, once. From then on the agent does not end this process."""
        if self._exited is not None:
            return
        self._exited = end = end_with(error)
        if self._recorder is not None:
            self._recorder.close(self._record(end))
        if self._wire is not None:
            agreed = is_agreed(error)
            self._wire.send({"bye": end.code, "reason": end.reason, "agreed": agreed})
            self._noted.wait(_FILE_SECONDS)
        self._alert(end)
        if self._stacks is not None:
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()

    def _start_agent(self, setup: Message) -> None:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self.heartbeat.fd)
        out, errors = real_descriptors()  # the agent outlives `held_output` in this process
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "wikillm.supervise.agent", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env=environment_with_wikillm(),
        )
        theirs.close()
        self._wire = Wire(ours)
        self._wire.send(setup)
        threading.Thread(target=self._listen, args=(self._wire,), daemon=True).start()

    def _listen(self, wire: Wire) -> None:
        """Handle messages of the agent until it ends. (a thread)"""
        while not wire.closed:
            select.select([wire], [], [])
            for message in wire.receive():
                if "welcome" in message:
                    self._is_joining = False
                    self._answers.put(message)
                elif "noted" in message:
                    self._noted.set()
                elif "end" in message:
                    self._alerts_now = bool(message["alerts"])
                    wire.send({"acknowledged": True})
                    if self._is_joining:
                        self._answers.put(message)
                    elif self._exited is None:
                        self._end(End.from_message(message), reports=bool(message["reports"]))
        # The agent has ended: release the threads that wait for it.
        self._noted.set()
        if self._exited is None:
            warn("the supervisor's process is gone: the run continues without it")
        self._answers.put({"reason": f"The supervisor of rank {self.world.rank} ended."})

    def _end(self, end: End, *, reports: bool) -> None:
        """Write reason and stacks, then end the process, wherever the main thread hangs."""
        step = self.heartbeat.read().step
        logger.critical("ended by the supervisor at step %d: %s", step, end.reason)
        if self._stacks is not None:
            with suppress(OSError, ValueError):
                faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        if reports:
            print_end(end)
        # In a thread with a time limit: the file system may be behind the lost link.
        args = (end, step, reports)
        writer = threading.Thread(target=self._write_exit, args=args, daemon=True)
        writer.start()
        writer.join(_FILE_SECONDS)
        self._alert(end)
        self._wait_for_alert()
        os._exit(end.code)

    def _alert(self, end: End) -> None:
        """Send the alert about the end of this start if no agent is left to send it. (rank 0)"""
        if self.world.is_main and (self._wire is None or self._wire.closed):
            self.alerts.end(end.event, end.code, end.reason, self.heartbeat.read().step)

    def _wait_for_alert(self) -> None:
        """Wait until the agent has sent its alert: in a container this exit ends the sender."""
        wire = self._wire
        if self._alerts_now and wire is not None:
            while not wire.closed and select.select([wire], [], [], WAIT_SECONDS)[0]:
                if any("noted" in message for message in wire.receive()):
                    return

    def _write_exit(self, end: End, step: int, reports: bool) -> None:
        if self._run is None:
            return
        if not reports:
            time.sleep(2.0)  # the rank that reports to the user writes first, if it can
        write_exit(self._run, end, self.world.rank, step, keep=True)

    def _record(self, end: End | None = None) -> RankRecord:
        """The record of this rank now. `end`: how the rank ended."""
        place = (self.world.rank, self.world.local_rank, self.world.size)
        start = RankRecord(*place, Process.here(os.getpid()), None, "start", 0, 0.0, INTERVAL, 0.0)
        return start.now(self.heartbeat.read(), end)

    def _end_at_once(self) -> None:
        """Handle `wikillm stop --now` without an agent."""
        if self._recorder is not None:
            self._recorder.close(self._record(STOPPED_AT_ONCE))
        self._end(STOPPED_AT_ONCE, reports=self.world.is_main)


@contextmanager
def supervise(
    world: World, settings: SuperviseSettings, versions: Callable[[], dict[str, str]]
) -> Iterator[Supervisor]:
    """Supervise the block, and report to the other ranks how it ended. (all ranks)"""
    supervisor = Supervisor(world, settings)
    error: BaseException | None = None
    try:
        supervisor.start(versions)
        yield supervisor
    except BaseException as caught:
        error = caught
        if isinstance(error, StoppedError):
            supervisor.wait_for_reason(error)
        raise
    finally:
        supervisor.leave(error)
