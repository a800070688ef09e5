"""Requests to stop: signals before and in training, swallowed ones, and the end of a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wikillm.core.errors import StoppedError
from wikillm.supervise import launchers
from wikillm.supervise.launchers import launchers_of, program_of
from wikillm.supervise.signals import StopSignals


def run_python(program: str, *, before: str = "") -> tuple[str, int]:
    """Output and exit code."""
    words = [*before.split(), sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    return done.stdout, done.returncode


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in StopSignals.SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    stop = StopSignals()
    stop.install()
    yield stop
    stop.close()
    signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_before_training_a_signal_stops_where_the_process_stands(
    signals: StopSignals, number: int
) -> None:
    with pytest.raises(StoppedError, match=signal.Signals(number).name), signals.as_error():
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1)  # the handler runs before this returns


def test_in_training_it_is_remembered_and_a_launchers_repeat_is_the_same_request(
    signals: StopSignals,
) -> None:
    signals.defer()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals.received == "SIGINT"


def test_a_signal_ends_a_process_that_waits_in_a_rendezvous_for_ranks_that_never_come() -> None:
    program = """
        import multiprocessing, os, signal, threading, time
        from datetime import timedelta
        import torch.distributed as dist
        from wikillm.supervise.signals import StopSignals
        StopSignals.GRACE = 0.5
        stop = StopSignals(); stop.install()
        stop.before_exit = lambda error: print(error.what, flush=True)
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        def wait():
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            ready.set()
            time.sleep(60)
        child = context.Process(target=wait)
        child.start()
        ready.wait()
        child.terminate()  # a signal to a fork is not one to this process
        child.join()
        time.sleep(0.2)
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        dist.TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=60))
    """
    said = "Stopped by SIGTERM before training began; nothing is lost.\n"
    assert run_python(program) == (said, 75)


def test_a_second_request_stops_at_once() -> None:
    program = """
        import os, signal, time
        from wikillm.supervise.signals import StopSignals
        StopSignals.GRACE = 0.2
        stop = StopSignals(); stop.install(); stop.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.4)
        print("still here", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    """
    assert run_python(program) == ("still here\n", 75)


SWALLOWING = """
    import os, signal, sys, time
    from wikillm.core.errors import StoppedError
    from wikillm.supervise.signals import installed, StopSignals
    StopSignals.GRACE = 0.5
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with installed() as signals:
            signals.before_exit = lambda error: print("recorded", flush=True)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)
            except {caught}:
                pass
            if {defers}:
                signals.defer()
                while signals.received is None:
                    time.sleep(0.01)
                print("polled", signals.received, flush=True)
                time.sleep(1.0)
            else:
                time.sleep(30)
    except StoppedError as error:
        print("raised", flush=True)
        sys.exit(75)
"""


@pytest.mark.parametrize(
    ("caught", "defers", "said", "code"),
    [
        ("Exception", False, "raised\n", 75),
        ("BaseException", False, "recorded\n", 75),
        ("BaseException", True, "polled SIGTERM\n", 0),
    ],
    ids=["catches Exception", "swallows all and hangs", "swallows all and continues"],
)
def test_a_stop_that_a_library_swallows_is_not_lost(
    caught: str, defers: bool, said: str, code: int
) -> None:
    assert run_python(SWALLOWING.format(caught=caught, defers=defers)) == (said, code)


def test_nohup_is_respected_and_a_closed_session_is_a_request_to_stop() -> None:
    program = """
        import os, signal
        from wikillm.supervise.signals import StopSignals
        stop = StopSignals(); stop.install(); stop.install(); stop.defer()
        os.kill(os.getpid(), signal.SIGHUP)
        print(stop.received)
    """
    assert run_python(program, before="nohup") == ("None\n", 0)
    assert run_python(program, before="env --default-signal=HUP") == ("SIGHUP\n", 0)


RANK = """
    import os, sys, time
    from wikillm.core.errors import StoppedError
    from wikillm.supervise import launchers
    from wikillm.supervise.signals import installed
    launchers.POLL_SECONDS = 0.05
    try:
        with installed():
            print(os.getpid(), flush=True)
            time.sleep(30)
    except StoppedError as error:
        print(error.what, flush=True)
"""


class Tree:
    """Processes named `deepspeed`, `torchrun` and sh above a rank; each waits for its child."""

    def __init__(self, folder: Path, outer: str) -> None:
        rank = folder / "rank.py"
        inner = folder / "torchrun"
        top = folder / outer
        rank.write_text(textwrap.dedent(RANK))
        shell = ["sh", "-c", f"{sys.executable} {rank}; exit $?"]
        run = "import os, subprocess\nsubprocess.run({!r}, env=dict(os.environ, {}))\n"
        inner.write_text(run.format(shell, "RANK='0'"))
        call = [sys.executable, "-u", str(inner)]
        top.write_text(run.format(call, ""))
        argv = [sys.executable, str(top)]
        if outer == "sh":
            argv = ["sh", "-c", f"{' '.join(call)}; exit $?"]
        environ = {name: value for name, value in os.environ.items() if name != "RANK"}
        environ["PYTHONPATH"] = str(Path(launchers.__file__).parents[2])
        self.top = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True)
        assert self.top.stdout is not None
        self.said = self.top.stdout
        self.rank = int(self.said.readline())
        self.above = launchers_of(self.rank)

    def end(self) -> None:
        for pid in (self.rank, *(launcher.process.pid for launcher in self.above)):
            if Path(f"/proc/{pid}/stat").exists():
                os.kill(pid, signal.SIGKILL)
        self.top.kill()
        self.top.wait()
        self.said.close()


@pytest.mark.parametrize("killed", ["sh", "torchrun", "deepspeed"])
def test_a_rank_stops_when_any_process_between_it_and_the_first_launcher_is_gone(
    killed: str, tmp_path: Path
) -> None:
    tree = Tree(tmp_path, "deepspeed")
    try:
        assert [launcher.program for launcher in tree.above] == ["sh", "torchrun", "deepspeed"]
        victim = next(launcher.process.pid for launcher in tree.above if launcher.program == killed)
        os.kill(victim, signal.SIGKILL)
        assert f"Stopped by the end of its launcher ({killed}, pid {victim})" in tree.said.read()
    finally:
        tree.end()


@pytest.mark.parametrize("launcher", ["accelerate", "service"])
def test_a_single_process_without_rank_stops_with_a_launcher_only(
    launcher: str, tmp_path: Path
) -> None:
    """`accelerate launch` with one process sets no RANK."""
    rank = tmp_path / "rank.py"
    rank.write_text(textwrap.dedent(RANK).replace("time.sleep(30)", "time.sleep(2)"))
    program = f"import subprocess\nsubprocess.run({[sys.executable, str(rank)]!r})\n"
    (tmp_path / launcher).write_text(program)
    environ = {name: value for name, value in os.environ.items() if name != "RANK"}
    environ["PYTHONPATH"] = str(Path(launchers.__file__).parents[2])
    argv = [sys.executable, str(tmp_path / launcher)]
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        top.stdout.readline()
        top.kill()
        stopped = f"Stopped by the end of its launcher ({launcher}, pid {top.pid})"
        assert (stopped in top.stdout.read()) == (launcher == "accelerate")


def test_a_shell_above_the_launcher_may_end(tmp_path: Path) -> None:
    """As after `nohup torchrun ... &` and a log-out."""
    tree = Tree(tmp_path, "sh")
    try:
        assert [launcher.program for launcher in tree.above] == ["sh", "torchrun"]
        assert program_of(tree.top.pid) == "sh" and tree.top.pid not in [
            up.process.pid for up in tree.above
        ]
        tree.top.kill()
        time.sleep(0.3)  # six looks
        assert all(launcher.process.is_alive() for launcher in tree.above)
        assert Path(f"/proc/{tree.rank}/stat").exists()
    finally:
        tree.end()


def test_a_rank_that_a_shell_started_has_no_launcher() -> None:
    code = "import os; from wikillm.supervise.launchers import launchers_of as of; "
    code += "print(of(os.getpid()))"
    words = ["sh", "-c", f"RANK=0 {sys.executable} -c '{code}'; exit $?"]
    assert subprocess.check_output(words, text=True) == "()\n"
