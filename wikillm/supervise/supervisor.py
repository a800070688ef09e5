"""The rank's side: marks what it does on the heartbeat, starts the agent, and leaves when the agent says so.

Where all ranks are on one machine the agents meet through a socket of that machine, no port is taken, and nothing waits
for the meeting. With `train.supervise=off` there is no agent and no limit: only the record for `wikillm status` and
`wikillm stop`, written by a thread. Marking costs a few microseconds a step.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Literal

from wikillm.config.resolved import Resolved
from wikillm.core.errors import ExitCode, MachineError, StoppedError, WikiLLMError
from wikillm.core.faults import as_refusal
from wikillm.core.log import logger, say, warn
from wikillm.core.world import World
from wikillm.supervise.exit_file import is_agreed, say_end, write_exit
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.membership import DIED_WAITS, FAILED_WAITS, KILLED_WAITS, Limits
from wikillm.supervise.network import Nic, check_master_port, choose_nic, set_interface
from wikillm.supervise.records import (
    INTERVAL,
    NO_WORD,
    Process,
    RankRecord,
    Recorder,
    end_of,
    read_records,
)
from wikillm.supervise.secret import run_secret
from wikillm.supervise.wire import Message, Wire

_CONNECTION = re.compile(
    r"connection|socket|gloo|nccl|reset by peer|broken pipe|tcpstore|rendezvous|monitoredbarrier|wait timeout"
    r"|timed out (after|waiting)",
    re.IGNORECASE,
)
NEVER = 1e9  # seconds
_FILE_SECONDS = (
    5.0  # what writing exit.json may take: the file system may be behind the link that is gone
)


@dataclass(frozen=True, slots=True)
class Settings:
    """`train.supervise` and its limits, in seconds; `run` is the run directory, the same on every node."""

    mode: Literal["auto", "on", "off"]
    limits: Limits
    run: Path


def settings_of(resolved: Resolved) -> Settings:
    """How a run is watched. `train.exit_timeout_seconds` is also what ranks get to leave after one another."""
    train, run = resolved.config.train, resolved.config.run
    limits = Limits(
        train.meet_seconds, train.lost_seconds, train.stall_seconds, train.exit_timeout_seconds
    )
    return Settings(train.supervise, limits, Path(run.dir or f"runs/{run.name}"))


def is_local(world: World, settings: Settings) -> bool:
    """All ranks are on this machine: the agents meet without the network, and write nothing before the run directory stands."""
    return world.size == world.local_size and settings.mode != "on"


class Supervisor:
    """Of one rank. Make it through `supervise`. `heartbeat` has the marks: enter, progress, step_done."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world, self.settings = world, settings
        self.is_local = is_local(world, settings)
        self.is_active = settings.mode != "off" and (self.is_local or world.size > 1)
        self.heartbeat = Heartbeat()
        self.nic: Nic | None = None
        self._wire: Wire | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._recorder: Recorder | None = None
        self._run: Path | None = None
        self._stacks: IO[str] | None = None
        self._left: tuple[int, str] | None = None
        self._welcome: Message | None = None
        self._verdict: Message | None = None
        self._asked_why = False
        self._answered, self._noted, self._meeting = (
            threading.Event(),
            threading.Event(),
            not self.is_local,
        )

    def start(
        self, facts: Callable[[], dict[str, str]], environ: Mapping[str, str] = os.environ
    ) -> None:
        """Find the way to the first node, meet all ranks there. (all ranks)

        Raises MachineError when a rank does not come, or does not run the same thing.
        """
        if (
            self.world.size > 1
            and self.world.is_main
            and environ.get("MASTER_PORT", "").isdecimal()
        ):
            check_master_port(int(environ["MASTER_PORT"]), environ)
        if not self.is_active:
            return
        if self.is_local:
            try:
                self._start_agent(self._introduce(None, None, {}, environ))
            except OSError as error:  # no process or descriptor left
                warn(f"no supervisor: {error.strerror or error}; the run goes on without")
                self.is_active = False
            return
        master, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
        if master is None or port is None:
            raise MachineError(
                f"WORLD_SIZE={self.world.size} is set, but MASTER_ADDR or MASTER_PORT is not.",
                fix="start with `deepspeed train.py ...` or `torchrun ...`",
            )
        self.nic = choose_nic(master)
        name = (
            set_interface(self.nic)
            if self.world.size != self.world.local_size
            else str(self.nic.interface)
        )
        self._start_agent(self._introduce(master, int(port), facts(), environ))
        self._answered.wait()
        self._meeting = False
        if self._verdict is not None:
            raise MachineError(str(self._verdict["reason"]))
        if self._welcome is not None:
            hosts = self._welcome["welcome"]
            who = ", ".join(f"{host} {address}" for host, (address, _) in hosts.items())
            say(
                f"nodes      {who}; ranks meet through {name}; supervisor: node lost {self.settings.limits.lost:.0f} s"
            )

    def at(self, run: Path, log_file: Path) -> None:
        """The run directory stands, and is ours: records and stacks go there. Only the first call counts. (all ranks)"""
        if self._run is not None:
            return
        self._run = run
        if self.nic is not None:
            logger.info("network: %s through %s", self.nic.address, self.nic.interface)
        if self._wire is not None:
            self._stacks = log_file.open("a", encoding="utf-8")
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
            self._wire.send({"run": str(run.absolute())})
            return
        self._recorder = Recorder(run, self._record, self._stop)
        self._recorder.start()

    @contextmanager
    def explains(self) -> Iterator[None]:
        """An error in the block is told to the other ranks at once; one out of a connection waits here for what they say.

        Raises MachineError, or an error with another rank's code and words, in place of what a collective says of a lost peer.
        """
        try:
            yield
        except StoppedError as error:
            self.hear_why(error)
            raise
        except (RuntimeError, OSError) as error:
            if self.world.size == 1 or not is_about_a_connection(error):
                self.leave(error)
                raise
            logger.error(
                "a collective failed; waiting for the rank that is gone to be named", exc_info=error
            )
            raise self._explain(error) from error
        except BaseException as error:
            self.leave(error)
            raise

    def hear_why(self, error: StoppedError) -> None:
        """Was this rank asked to stop because another one was killed? Then the verdict on that one ends this process here."""
        if error.is_alone and self.is_active and self.world.size > 1 and not self._asked_why:
            self._asked_why = True
            time.sleep(KILLED_WAITS + 1.0)

    def _explain(self, error: BaseException) -> MachineError:
        """What ended the other rank; where there is an agent, its verdict ends this process before."""
        if self.is_active:
            time.sleep(
                FAILED_WAITS + DIED_WAITS + (5.0 if self.is_local else self.settings.limits.lost)
            )
        else:
            deadline = time.monotonic() + DIED_WAITS
            while (found := self._gone()) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if found is not None:
                return found
        return MachineError(
            "The connection to another rank was lost, and no rank says why.",
            got=str(error).splitlines()[0][:300],
            fix="look into RUN/logs/rank_*.log; the newest checkpoint stands: --resume auto",
        )

    def _gone(self) -> MachineError | None:
        """A rank that has ended, by its record: how, with its own code and words where it has left some."""
        for record in read_records(self._run) if self._run is not None else []:
            if record.rank == self.world.rank:
                continue
            if record.exit is not None and record.exit["code"]:
                gone = MachineError(f"rank {record.rank} ended: {record.exit['reason']}")
                gone.exit_code = ExitCode(record.exit["code"])
                return gone
            if record.exit is None and record.process.is_here() and not record.process.is_alive():
                how = end_of(record.process.pid) or NO_WORD
                return MachineError(f"rank {record.rank} (pid {record.process.pid}) {how}.")
        return None

    def leave(self, error: BaseException | None) -> None:
        """Say goodbye, with the reason. Nothing of the supervisor ends this process from here on. The first call counts."""
        if self._left is not None:
            return
        refusal = None if error is None else as_refusal(error)
        code = (
            ExitCode.DONE
            if error is None
            else ExitCode.BUG
            if refusal is None
            else refusal.exit_code
        )
        reason = (
            "the horizon was reached"
            if error is None
            else str(refusal or error) or type(error).__name__
        )
        self._left = (int(code), reason)
        if self._recorder is not None:
            self._recorder.close(self._record())
        if self._wire is not None:
            self._wire.send(
                {"bye": self._left[0], "reason": self._left[1], "agreed": is_agreed(error)}
            )
            self._noted.wait(_FILE_SECONDS)
        if self._stacks is not None:
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()

    def _introduce(
        self,
        master: str | None,
        port: int | None,
        facts: dict[str, str],
        environ: Mapping[str, str],
    ) -> Message:
        """`master` and `port` are None where all ranks are on this machine."""
        nic, limits = self.nic or Nic(None, "", ""), self.settings.limits
        # A rank started by hand has no port that tells its run from another one: its pid does, it is alone.
        again = [
            environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        ]
        where = port or (
            environ.get("MASTER_PORT", "") if self.world.size > 1 else f"pid {os.getpid()}"
        )
        job = "\0".join(
            [str(self.settings.run.absolute()), str(where), str(self.world.size), *again]
        )
        if self.is_local:  # no secret: the kernel says which user is at the other end
            secret = hashlib.sha256(job.encode()).hexdigest()
            limits = replace(limits, meet=NEVER, lost=NEVER)
        else:
            secret = run_secret(self.settings.run, environ).hex()
        return {
            "rank": self.world.rank, "local_rank": self.world.local_rank, "world_size": self.world.size,
            "local_size": self.world.local_size, "pid": os.getpid(), "limits": asdict(limits),
            "process": asdict(Process.here(os.getpid())),
            "master": master, "master_address": nic.master, "master_port": port, "address": nic.address,
            "interface": nic.interface, "job": job, "facts": facts, "secret": secret,
            "nodes": [name for name in environ.get("WIKILLM_NODES", "").split(",") if name],
        }  # fmt: skip

    def _start_agent(self, told: Message) -> None:
        ours, theirs = socket.socketpair()
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "wikillm.supervise.agent", str(theirs.fileno()), str(self.heartbeat.fd)],
            pass_fds=(theirs.fileno(), self.heartbeat.fd), stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        theirs.close()
        self._wire = Wire(ours)
        self._wire.send(told)
        threading.Thread(
            target=self._listen, args=(self._wire,), name="supervisor", daemon=True
        ).start()

    def _listen(self, wire: Wire) -> None:
        while not wire.closed:
            select.select([wire], [], [])
            for message in wire.receive():
                if "welcome" in message:
                    self._welcome = message
                    self._answered.set()
                elif "noted" in message:
                    self._noted.set()
                elif "end" in message:
                    wire.send({"hears": True})
                    if self._meeting:
                        self._verdict = message
                        self._answered.set()
                    elif self._left is None:
                        self._end(
                            int(message["end"]),
                            str(message["reason"]),
                            speaks=bool(message["speaks"]),
                        )
        self._noted.set()
        if self._left is None and not self._answered.is_set():
            self._verdict = {"reason": f"The supervisor of rank {self.world.rank} ended by itself."}
        self._answered.set()
        if self._left is None:
            warn("the supervisor's process is gone: the run goes on without")

    def _end(self, code: int, reason: str, *, speaks: bool) -> None:
        """In the listener's thread, whatever the main thread is stuck in: say why, leave the stacks, end the process."""
        step = self.heartbeat.read().step
        logger.critical("ended by the supervisor at step %d: %s", step, reason)
        if self._stacks is not None:
            with suppress(OSError, ValueError):
                faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        if speaks:
            say_end(code, reason)
        writer = threading.Thread(
            target=self._write_exit, args=(code, reason, step, speaks), daemon=True
        )
        writer.start()
        writer.join(_FILE_SECONDS)
        os._exit(code)

    def _write_exit(self, code: int, reason: str, step: int, speaks: bool) -> None:
        if self._run is None:
            return
        if not speaks:
            time.sleep(2.0)  # the speaker's word counts where it can still write
        write_exit(self._run, code, reason, self.world.rank, step, keep=True)

    def _record(self) -> RankRecord:
        progress, world, left = self.heartbeat.read(), self.world, self._left
        return RankRecord(
            world.rank, world.local_rank, world.size, Process.here(os.getpid()), None,
            progress.phase, progress.step, progress.standing, INTERVAL, time.time(),
            None if left is None else {"code": left[0], "reason": left[1]},
        )  # fmt: skip

    def _stop(self, at_once: bool) -> None:
        """`wikillm stop` asked, and there is no agent."""
        if at_once:
            self._left = (
                int(ExitCode.STOPPED),
                "Ended at once by `wikillm stop --now`; nothing was saved.",
            )
            if self._recorder is not None:
                self._recorder.close(self._record())
            left, self._left = self._left, None
            self._end(*left, speaks=self.world.is_main)
        os.kill(os.getpid(), signal.SIGTERM)


def is_about_a_connection(error: BaseException) -> bool:
    """Does a collective say that it lost a peer? Not where a file, or WikiLLM itself, is concerned."""
    if isinstance(error, WikiLLMError) or (
        isinstance(error, OSError) and error.filename is not None
    ):
        return False
    if isinstance(error, ConnectionError):
        return True
    return as_refusal(error) is None and bool(_CONNECTION.search(str(error)))


@contextmanager
def supervise(
    world: World, settings: Settings, facts: Callable[[], dict[str, str]]
) -> Iterator[Supervisor]:
    """Supervised from here to the end of the block; the way it ends is told to the other ranks. (all ranks)"""
    supervisor = Supervisor(world, settings)
    error: BaseException | None = None
    try:
        supervisor.start(facts)
        yield supervisor
    except BaseException as caught:
        error = caught
        if isinstance(error, StoppedError):
            supervisor.hear_why(error)
        raise
    finally:
        supervisor.leave(error)
