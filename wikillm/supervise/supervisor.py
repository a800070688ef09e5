"""The rank's side: marks what it does on the board, starts the agent, and leaves when the agent says so.

On one node (or `train.supervise=off`) there is no agent, nobody to lose and no limit: only the record for `wikillm status`
and `wikillm stop`, written by a thread. Marking costs a few microseconds a step.
"""

from __future__ import annotations

import faulthandler
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from wikillm.core.errors import ExitCode, MachineError, WikiLLMError
from wikillm.core.log import logger, say, warn
from wikillm.core.world import World
from wikillm.supervise.board import Board
from wikillm.supervise.exit_file import write_exit
from wikillm.supervise.network import Nic, check_master_port, choose_nic, set_interface
from wikillm.supervise.records import INTERVAL, Process, RankRecord, Recorder
from wikillm.supervise.roll import Limits
from wikillm.supervise.secret import run_secret
from wikillm.supervise.wire import Message, Wire

_CONNECTION = re.compile(r"connection|socket|gloo|nccl|reset by peer|timed? ?out|broken pipe|store|rank", re.IGNORECASE)
_FILE_SECONDS = 5.0  # what writing exit.json may take: the file system may be behind the link that is gone


@dataclass(frozen=True, slots=True)
class Settings:
    """`train.supervise` and its limits, in seconds; `run` is the run directory, the same on every node."""

    mode: Literal["auto", "on", "off"]
    limits: Limits
    run: Path


class Supervisor:
    """Of one rank. Make it through `supervise`. `board` has the marks: enter, progress, step_done."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world, self.settings = world, settings
        several = world.size != world.local_size
        self.is_active = world.size > 1 and (settings.mode == "on" or (settings.mode == "auto" and several))
        self.board = Board()
        self.nic: Nic | None = None
        self._wire: Wire | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._recorder: Recorder | None = None
        self._run: Path | None = None
        self._stacks: IO[str] | None = None
        self._left: tuple[int, str] | None = None
        self._welcome: Message | None = None
        self._verdict: Message | None = None
        self._answered, self._noted, self._meeting = threading.Event(), threading.Event(), True

    def start(self, facts: Callable[[], dict[str, str]], environ: Mapping[str, str] = os.environ) -> None:
        """Find the way to the first node, meet all ranks there. (all ranks)

        Raises MachineError when a rank does not come, or does not run the same thing.
        """
        if self.world.size > 1 and self.world.is_main and environ.get("MASTER_PORT", "").isdecimal():
            check_master_port(int(environ["MASTER_PORT"]), environ)
        if not self.is_active:
            return
        master, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
        if master is None or port is None:
            raise MachineError(
                f"WORLD_SIZE={self.world.size} is set, but MASTER_ADDR or MASTER_PORT is not.",
                fix="start with `deepspeed train.py ...` or `torchrun ...`",
            )
        self.nic = choose_nic(master)
        name = set_interface(self.nic) if self.world.size != self.world.local_size else str(self.nic.interface)
        self._start_agent(self._introduce(master, int(port), facts(), environ))
        self._answered.wait()
        self._meeting = False
        if self._verdict is not None:
            raise MachineError(str(self._verdict["reason"]))
        if self._welcome is not None:
            hosts = self._welcome["welcome"]
            who = ", ".join(f"{host} {address}" for host, (address, _) in hosts.items())
            say(f"nodes      {who}; ranks meet through {name}; supervisor: node lost {self.settings.limits.lost:.0f} s")

    def at(self, run: Path, log_file: Path) -> None:
        """The run directory stands, and is ours: records and stacks go there. (all ranks)"""
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
        """An error out of a connection waits here for the supervisor's word: it knows which node is gone."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if self.is_active and not isinstance(error, WikiLLMError) and _CONNECTION.search(str(error)):
                logger.error("a collective failed; waiting for the supervisor to say why", exc_info=error)
                time.sleep(self.settings.limits.lost + 10.0)  # the listener ends the process
            raise

    def leave(self, error: BaseException | None) -> None:
        """Say goodbye, with the reason. Nothing of the supervisor ends this process from here on."""
        code = ExitCode.DONE if error is None else getattr(error, "exit_code", ExitCode.BUG)
        self._left = (int(code), "the horizon was reached" if error is None else str(error) or type(error).__name__)
        if self._recorder is not None:
            self._recorder.close(self._record())
        if self._wire is not None:
            self._wire.send({"bye": self._left[0], "reason": self._left[1]})
            self._noted.wait(_FILE_SECONDS)
        if self._stacks is not None:
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()

    def _introduce(self, master: str, port: int, facts: dict[str, str], environ: Mapping[str, str]) -> Message:
        nic = self.nic
        if nic is None:
            raise RuntimeError("the network is chosen first")
        again = [environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]
        job = "\0".join([str(self.settings.run), str(port), str(self.world.size), *again])
        return {
            "rank": self.world.rank, "local_rank": self.world.local_rank, "world_size": self.world.size,
            "local_size": self.world.local_size, "pid": os.getpid(), "limits": asdict(self.settings.limits),
            "master": master, "master_address": nic.master, "master_port": port, "address": nic.address,
            "interface": nic.interface, "job": job, "facts": facts,
            "secret": run_secret(self.settings.run, environ).hex(),
            "nodes": [name for name in environ.get("WIKILLM_NODES", "").split(",") if name],
        }  # fmt: skip

    def _start_agent(self, told: Message) -> None:
        ours, theirs = socket.socketpair()
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "wikillm.supervise.agent", str(theirs.fileno()), str(self.board.fd)],
            pass_fds=(theirs.fileno(), self.board.fd), stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        theirs.close()
        self._wire = Wire(ours)
        self._wire.send(told)
        threading.Thread(target=self._listen, args=(self._wire,), name="supervisor", daemon=True).start()

    def _listen(self, wire: Wire) -> None:
        while not wire.closed:
            select.select([wire], [], [])
            for message in wire.receive():
                if "welcome" in message:
                    self._welcome = message
                    self._answered.set()
                elif "noted" in message:
                    self._noted.set()
                elif "end" in message and self._meeting:
                    self._verdict = message
                    self._answered.set()
                elif "end" in message and self._left is None:
                    self._end(int(message["end"]), str(message["reason"]), lost_main=bool(message.get("lost_main")))
        self._noted.set()
        if self._left is None and not self._answered.is_set():
            self._verdict = {"reason": f"The supervisor of rank {self.world.rank} ended by itself."}
        self._answered.set()
        if self._left is None:
            warn("the supervisor's process is gone: the run goes on without")

    def _end(self, code: int, reason: str, *, lost_main: bool = False) -> None:
        """In the listener's thread, whatever the main thread is stuck in: say why, leave the stacks, end the process."""
        step = self.board.read().step
        logger.critical("ended by the supervisor at step %d: %s", step, reason)
        if self._stacks is not None:
            with suppress(OSError, ValueError):
                faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        if self.world.is_main or (lost_main and self.world.local_rank == 0):
            name = "stopped" if code == ExitCode.STOPPED else "MachineError" if code == ExitCode.MACHINE else "error"
            with suppress(OSError, ValueError):
                sys.stderr.write(f"{name}: {reason}\n")
                sys.stderr.flush()
        writer = threading.Thread(target=self._write_exit, args=(code, reason, step), daemon=True)
        writer.start()
        writer.join(_FILE_SECONDS)
        os._exit(code)

    def _write_exit(self, code: int, reason: str, step: int) -> None:
        if self._run is None:
            return
        if not self.world.is_main:
            time.sleep(2.0)  # rank 0's word counts where it can still write
        write_exit(self._run, code, reason, self.world.rank, step, keep=not self.world.is_main)

    def _record(self) -> RankRecord:
        progress, world, left = self.board.read(), self.world, self._left
        return RankRecord(
            world.rank, world.local_rank, world.size, Process.here(os.getpid()), None,
            progress.phase, progress.step, progress.standing, INTERVAL, time.time(),
            None if left is None else {"code": left[0], "reason": left[1]},
        )  # fmt: skip

    def _stop(self, at_once: bool) -> None:
        """`wikillm stop` asked, and there is no agent."""
        if at_once:
            self._left = (int(ExitCode.STOPPED), "Ended at once by `wikillm stop --now`; nothing was saved.")
            if self._recorder is not None:
                self._recorder.close(self._record())
            left, self._left = self._left, None
            self._end(*left)
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def supervise(world: World, settings: Settings, facts: Callable[[], dict[str, str]]) -> Iterator[Supervisor]:
    """Supervised from here to the end of the block; the way it ends is told to the other ranks. (all ranks)"""
    supervisor = Supervisor(world, settings)
    error: BaseException | None = None
    try:
        supervisor.start(facts)
        yield supervisor
    except BaseException as caught:
        error = caught
        raise
    finally:
        supervisor.leave(error)
