"""What ends a run: overflow in a row, numbers that are not finite, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from wikillm.core.errors import DivergedError, StoppedError
from wikillm.train.callbacks.health import SkipCounter
from wikillm.train.control import StopSignals, watch_signals
from wikillm.train.host_copy import DeferredFlag


def test_skipped_steps_in_a_row_end_the_run_and_others_do_not() -> None:
    counter = SkipCounter(limit=3)
    assert [counter.step(total) for total in (0, 1, 2, 2, 3, 4)] == [False, True, True, False, True, True]
    with pytest.raises(DivergedError, match="3 optimizer steps in a row overflowed fp16"):
        counter.step(5)


def test_a_flag_on_the_cpu_arrives_at_once() -> None:
    flag = DeferredFlag()
    assert flag.push(torch.tensor(True)) is True
    assert flag.push(torch.tensor(False)) is False
    assert flag.flush() is False


@pytest.fixture
def signals() -> object:
    before = {number: signal.getsignal(number) for number in StopSignals.SIGNALS}
    stop = StopSignals()
    stop.install()
    yield stop
    watch_signals(lambda number: None)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_before_training_a_signal_stops_where_the_process_stands(signals: StopSignals, number: int) -> None:
    with pytest.raises(StoppedError, match=signal.Signals(number).name):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1)  # the handler runs before this returns


def test_in_training_it_is_remembered_and_a_launchers_repeat_is_the_same_request(signals: StopSignals) -> None:
    signals.defer()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals.received == "SIGINT"


def test_a_signal_ends_a_process_that_waits_in_a_rendezvous_for_ranks_that_never_come() -> None:
    program = """
        import multiprocessing, os, signal, threading, time
        from datetime import timedelta
        import torch.distributed as dist
        from wikillm.train.control import StopSignals
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
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("Stopped by SIGTERM before training began; nothing is lost.\n", 75)


def test_a_second_request_stops_at_once() -> None:
    program = """
        import os, signal, time
        from wikillm.train.control import StopSignals, watch_signals
        StopSignals.GRACE = 0.2
        stop = StopSignals(); stop.install(); stop.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.4)
        print("still here", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("still here\n", 75)
