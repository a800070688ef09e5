"""`wikillm launch --go` restarts a failed run from its last good checkpoint.

`wikillm launch` outlives the ranks. A restart is the same command with `--resume auto`. The exit
code tells whether a restart can help: not after a user error, a divergence, damaged data or a
requested stop. The launch gives up after `limit` restarts in a row without a new checkpoint. Each
of these restarts waits longer than the one before.

With `elastic`, each restart first contacts every node over ssh, and leaves out nodes that do not
answer. For one machine see fewer_ranks.py. The global batch is given in tokens, so fewer ranks
train with the same batch.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from wikillm.checkpoints.lineage import Position, arrange, read_ancestry
from wikillm.core.errors import CheckpointError, ConfigError, ExitCode, MachineError
from wikillm.core.files import read_object
from wikillm.core.log import say, warn
from wikillm.core.units import format_seconds
from wikillm.launch.description import Launch
from wikillm.launch.fewer_ranks import count_gpus, with_fewer_ranks
from wikillm.remote.hosts import read_hostfile
from wikillm.remote.ssh import ssh_argv
from wikillm.supervise.alerts import RESTARTS
from wikillm.supervise.records import read_records, stop_path
from wikillm.supervise.requests import announce_restart, file_identity, restart_path, stop_file
from wikillm.supervise.stop import is_running

DEFAULT = 3
"""Default of --max-restarts for the targets that restart a run."""
FIRST_PAUSE = 5.0
MAX_PAUSE = 600.0
PROBE_SECONDS = 20.0
RANKS_SECONDS = 120.0  # for ranks that outlive their launcher to save and exit
FINAL = frozenset(map(int, ExitCode)) - {ExitCode.BUG, ExitCode.MACHINE}
"""Exit codes without a restart: done, would fail the same way again, or stopped on request."""


@dataclass
class RestartPolicy:
    """Decides after each failed start whether the run is started again.

    Attributes:
        limit: most restarts in a row without a new checkpoint.
        tried: restarts since the newest checkpoint.
        reached: position of the newest checkpoint.
    """

    limit: int
    tried: int = 0
    reached: Position | None = None

    def may_restart(self, code: int, reached: Position | None) -> bool:
        """Whether to start again after exit code `code`. `reached`: see the attribute."""
        if reached != self.reached:
            self.tried = 0
        self.reached = reached
        if code in FINAL or self.tried >= self.limit:
            return False
        self.tried += 1
        return True

    @property
    def pause(self) -> float:
        return min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** (self.tried - 1))


@dataclass
class Launched:
    """The processes of the current start. A signal to this command sends SIGTERM to them."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    is_signalled: bool = False

    def on_signal(self, number: int, frame: object) -> None:
        self.is_signalled = True
        for process in self.processes:
            if process.poll() is None:
                process.terminate()


def keep_running(
    launch: Launch,
    start: Callable[[Launch, Launched], int],
    check: Callable[[Launch], None],
    alert: Callable[[int, str], None] = lambda code, reason: None,
) -> int:
    """Start the run, and restart it while a restart can help. Returns the last exit code.

    Args:
        start: starts the run once and waits for its end; returns the exit code.
        check: raises ConfigError if the run could not start, for example because its batch does not
            divide over fewer nodes.
        alert: called with exit code and reason when the command gives up. Each failed start also
            sends its own alert.
    """
    run = run_of(launch)
    policy = RestartPolicy(launch.max_restarts, reached=last_checkpoint(run))
    first = policy.reached
    old_requests = _stop_requests(run)
    # For the alerts of failed ranks. Not in os.environ: `alert` reports the end of all restarts.
    variables = {**launch.variables, RESTARTS: str(policy.limit)}
    current = replace(launch, variables=variables)
    last_lost: tuple[int | None, Position | None] | None = None  # with the newest checkpoint then
    with _signals_passed_on() as launched:
        while True:
            # Run one start to its end, and see what it has reached.
            code, lost = _one_start(run, current, start, launched)
            reached = last_checkpoint(run)
            is_lost_again = lost is not None and (lost, reached) == last_lost
            last_lost = None if is_lost_again else (lost, reached)

            def is_stopped() -> bool:
                return launched.is_signalled or not _stop_requests(run) <= old_requests

            if is_stopped() or not policy.may_restart(code, reached):
                _say_why_not(code, policy, alert)
                return code
            if not _wait(run, code, policy, is_stopped):
                return code
            # The next start resumes, with `elastic` without what the last start lost.
            again = current.resumed(has_saved=reached != first)
            if launch.elastic and launch.hostfile is not None:
                again = _on_nodes_that_answer(again, check)
            elif launch.elastic:
                left_out = lost if is_lost_again else None
                again = with_fewer_ranks(again, left_out, count_gpus(), check)
            current = again


def run_of(launch: Launch) -> Path:
    """The run directory, as this machine sees it."""
    return Path(launch.workdir) / (launch.run_dir or f"runs/{launch.name}")


def last_checkpoint(run: Path) -> Position | None:
    """Position of the checkpoint that `--resume auto` would use, from names and manifests."""
    for checkpoint in arrange(run / "checkpoints").branch:
        with suppress(CheckpointError):
            return read_ancestry(checkpoint).position
    return None


def _one_start(
    run: Path, launch: Launch, start: Callable[[Launch, Launched], int], launched: Launched
) -> tuple[int, int | None]:
    """Start the run once. Returns its exit code, and the rank that it lost if exit.json names one.

    The code is the launcher's if the run has recorded none.
    """
    record = run / "exit.json"
    before = file_identity(record)
    try:
        code = start(launch, launched)
    except MachineError as error:  # ssh did not reach a node
        if not launched.processes:
            raise  # a tool is missing
        warn(str(error))
        code = int(error.exit_code)
    _wait_for_ranks(run)
    # A launcher may turn every code into 1. Files from before 0.3 have no `lost_rank`.
    written = read_object(record) if file_identity(record) != before else {}
    recorded = written.get("code")
    lost = written.get("lost_rank")
    if code and type(recorded) is int and recorded:
        code = recorded
    return code, lost if type(lost) is int and lost >= 0 else None


def _wait_for_ranks(run: Path) -> None:
    """Wait for ranks that outlive their launcher: they notice its end, save and record a code.

    Ranks on other machines count as running until their records are half a minute old.
    """
    deadline = time.monotonic() + RANKS_SECONDS
    while any(map(is_running, read_records(run))) and time.monotonic() < deadline:
        time.sleep(0.2)


def _stop_requests(run: Path) -> set[tuple[int, int] | None]:
    """Identities of the files that request a stop. Each start removes earlier requests."""
    return {None, file_identity(stop_file(run)), file_identity(stop_path(run))}


def _say_why_not(code: int, policy: RestartPolicy, alert: Callable[[int, str], None]) -> None:
    if code not in FINAL and policy.limit and policy.tried >= policy.limit:
        why = f"giving up after {policy.tried} restarts without a new checkpoint (--max-restarts)"
        say(why)
        alert(code, why)


def _wait(run: Path, code: int, policy: RestartPolicy, is_stopped: Callable[[], bool]) -> bool:
    """Pause before the restart. Returns False if a stop was requested meanwhile."""
    pause = policy.pause
    place = "the last checkpoint" if policy.reached else "the beginning"
    say(
        f"exit code {code}: starting again from {place} in {format_seconds(pause)} "
        f"(restart {policy.tried} of {policy.limit} without a new checkpoint)"
    )
    announce_restart(run)
    deadline = time.monotonic() + pause
    try:
        while time.monotonic() < deadline:
            if is_stopped():
                say("stopped on request before the restart")
                return False
            time.sleep(0.2)
    finally:
        with suppress(OSError):
            restart_path(run).unlink(missing_ok=True)
    return True


def _on_nodes_that_answer(launch: Launch, check: Callable[[Launch], None]) -> Launch:
    """The launch without the nodes that do not answer, if the run can start without them."""
    gone = unreachable(launch)
    again = replace(launch, without=gone)
    try:
        check(again)
    except ConfigError as error:
        names = ", ".join(gone)
        warn(f"the run cannot continue without {names}; restarting with all its nodes:\n{error}")
        return launch
    if gone:
        say(f"leaving out {', '.join(gone)}: no answer over ssh")
    return again


def unreachable(launch: Launch) -> tuple[str, ...]:
    """Nodes of the hostfile that do not answer over ssh; () if no node answers."""
    if launch.hostfile is None:
        return ()
    names = [host.name for host in read_hostfile(launch.hostfile)]
    folder = f"[ -d {shlex.quote(launch.workdir)} ]"

    def answers(name: str) -> bool:
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                ssh_argv(name, folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=PROBE_SECONDS,
            )
            return done.returncode == 0
        return False

    with ThreadPoolExecutor(len(names)) as pool:
        answered = list(pool.map(answers, names))
    gone = [name for name, is_there in zip(names, answered, strict=True) if not is_there]
    return tuple(gone) if len(gone) < len(names) else ()


@contextmanager
def _signals_passed_on() -> Iterator[Launched]:
    """Pass SIGTERM, SIGINT and SIGHUP to this command on to the processes of the current start."""
    launched = Launched()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, launched.on_signal)
    try:
        yield launched
    finally:
        for number in numbers:
            signal.signal(number, before[number])
