"""Real ranks in real processes: a server imports the heavy modules once, and ranks are its forks.

Starting a launcher takes about 20 s on two cores, a fork of the warm server under one. Each call
of `run_ranks` has its own port, environment and processes. Calls share no state.

Ranks on a GPU (DS_ACCELERATOR=cuda) are new processes: DeepSpeed's import looks for GPUs, after
which no fork can use one, and it chooses the accelerator once.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness.ports import take_port

TESTS = Path(__file__).resolve().parent.parent
PRELOAD = ["harness.warm"]


class RankFailed(AssertionError):
    """A rank raised, died or did not finish. The message has the result of every rank."""


def start_server() -> None:
    """Start the warm server with this environment, unless it runs already."""
    _context()
    forkserver.ensure_running()


def _context() -> mp.context.ForkServerContext:
    # The server finds its preloads through the environment, not through this process's sys.path.
    # Without this it skips them silently, and every rank imports torch and deepspeed itself.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(TESTS), *os.environ.get("PYTHONPATH", "").split(":")])
    )
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _rank_main(
    channel: Connection,
    environ: Mapping[str, str],
    program: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(environ)
    # The parent ends this daemon with the tests. Only a non-daemon can start loader processes.
    mp.current_process().daemon = False
    try:
        channel.send(("ok", program(*args)))
    except BaseException as error:
        channel.send(("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        channel.close()
        os._exit(0)  # a rank must not run the exit handlers of the test process


def run_ranks(
    program: Callable[..., Any], world_size: int, *args: Any, timeout: float = 180.0, **environ: str
) -> list[Any]:
    """Run `program(*args)` on `world_size` gloo ranks; returns the results by rank.

    `program` must be importable by name (tests/harness/programs.py). Raises RankFailed with the
    traceback of every rank.
    """
    channels, processes = start_ranks(program, world_size, args, environ)
    outcomes = _collect(channels, timeout)
    for process in processes:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
    if any(kind != "ok" for kind, _ in outcomes):
        # Include successful results: a rank that left early explains why another one waits.
        raise RankFailed(
            "\n".join(
                f"--- rank {i}: {kind}\n{_end_of(value)}"
                for i, (kind, value) in enumerate(outcomes)
            )
        )
    return [value for _, value in outcomes]


def end_ranks(
    program: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0, **environ: str
) -> list[int]:
    """Like `run_ranks`, for ranks that are killed or fail. Returns the exit code of each.

    A code is negative for a signal, and 0 if the program returned.

    Raises RankFailed when a rank has not ended within `timeout` seconds.
    """
    channels, processes = start_ranks(program, world_size, args, environ)
    deadline = time.monotonic() + timeout
    try:
        for rank, process in enumerate(processes):
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                raise RankFailed(f"rank {rank} has not ended within {timeout:.0f} s")
        return [process.exitcode or 0 for process in processes]
    finally:
        for process in processes:
            process.kill()
        for channel in channels:
            channel.close()


def start_ranks(
    program: Callable[..., Any], world_size: int, args: tuple[Any, ...], environ: Mapping[str, str]
) -> tuple[list[Connection], list[BaseProcess]]:
    """Start the ranks and do not wait. Returns the end of each rank's channel, and the ranks."""
    port = str(take_port())
    on_gpu = environ.get("DS_ACCELERATOR") == "cuda"
    context: Any = mp.get_context("spawn") if on_gpu else _context()
    channels = []
    processes = []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
            **environ,
        }  # fmt: skip
        process = context.Process(
            target=_rank_main, args=(theirs, variables, program, args), daemon=True
        )
        process.start()
        theirs.close()
        channels.append(ours)
        processes.append(process)
    return channels, processes


def _end_of(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 4000 else f"... {text[-4000:]}"


def _collect(channels: list[Connection], timeout: float) -> list[tuple[str, Any]]:
    outcomes: list[tuple[str, Any]] = [("no answer", f"nothing within {timeout:.0f} s")] * len(
        channels
    )
    open_channels = dict(zip(channels, range(len(channels)), strict=True))
    while open_channels:
        ready = wait(list(open_channels), timeout=timeout)
        if not ready:
            break
        for channel in ready:
            rank = open_channels.pop(channel)  # type: ignore[arg-type]
            try:
                outcomes[rank] = channel.recv()  # type: ignore[union-attr]
            except EOFError:
                outcomes[rank] = ("died", "the process ended without an answer")
            if outcomes[rank][0] != "ok":
                timeout = min(timeout, 10.0)  # the others may wait for this one forever
    return outcomes
