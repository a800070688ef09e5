"""The targets by name, and how one is started."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wikillm.core.errors import ConfigError, ExitCode, MachineError, did_you_mean
from wikillm.core.files import write_atomic
from wikillm.core.log import say
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.hostfile import hostfile
from wikillm.launch.local import multi, single, torchrun
from wikillm.launch.machine import ssh
from wikillm.launch.manifests import kubernetes
from wikillm.launch.skypilot import sky
from wikillm.launch.slurm import slurm
from wikillm.remote.environment import FILE_NAME, write_environment_file

SECONDS_TO_FOLLOW = 15.0
_SSH_FAILED = 255
_PR_SET_PDEATHSIG = 1
_TELLING = frozenset(code.value for code in ExitCode if code not in (ExitCode.DONE, ExitCode.BUG))

TARGETS: dict[str, Callable[[Launch], Rendering]] = {
    "single": single,
    "multi": multi,
    "torchrun": torchrun,
    "hostfile": hostfile,
    "ssh": ssh,
    "slurm": slurm,
    "k8s": kubernetes,
    "sky": sky,
}


def render(target: str, launch: Launch) -> Rendering:
    """What `target` would run. Raises ConfigError for an unknown target or a description that lacks something."""
    if target not in TARGETS:
        near = did_you_mean(target, TARGETS)
        raise ConfigError(
            f"There is no target {target!r}.", fix=near or "one of: " + ", ".join(TARGETS)
        )
    return TARGETS[target](launch)


def start(launch: Launch, rendering: Rendering) -> int:
    """Run the steps of a rendering on this machine; returns the first code that is not 0.

    A single step replaces this process: signals reach the launcher itself, and its exit code is the caller's.
    Raises MachineError when a tool is missing.
    """
    if not rendering.steps:
        raise ConfigError(
            "This has to be started on every node.",
            fix="--print, and run it on each node; or --node-rank N for this one",
        )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for tool in {step.argv[0] for step in rendering.steps}:
        if shutil.which(tool, path=path) is None:
            raise MachineError(
                f"{tool} is not on this machine.",
                fix=f"install {tool}, or use --print and run it there",
            )
    if rendering.file is not None:
        write_atomic(Path(rendering.file), rendering.text)
        say(f"wrote {rendering.file}")
    if rendering.writes_environment and launch.variables:
        write_environment_file(Path(launch.workdir) / FILE_NAME, launch.variables)
    environ = {**os.environ, "PATH": path}
    if len(rendering.steps) == 1 and rendering.steps[0].stdin is None:
        argv = rendering.steps[0].argv
        sys.stdout.flush()
        os.execvpe(argv[0], list(argv), environ)
    code = (
        _run_together(rendering.steps, environ)
        if rendering.steps[0].background
        else _run(rendering.steps, environ)
    )
    if code == 0:
        for note in rendering.notes:
            say(note)
    return code


def _run(steps: tuple[Step, ...], environ: dict[str, str]) -> int:
    for step in steps:
        given = (
            {"input": step.stdin, "text": True}
            if step.stdin is not None
            else {"stdin": subprocess.DEVNULL}
        )
        done = subprocess.run(step.argv, env=environ, check=False, **given)  # type: ignore[call-overload]
        if done.returncode:
            return int(done.returncode)
    return 0


def _end_with_parent() -> None:
    """In a new child: SIGTERM when this process is killed. Its ssh then closes the terminal, which ends the job with a checkpoint.

    The kernel ties this to the thread that forks, here the main one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _run_together(steps: tuple[Step, ...], environ: dict[str, str]) -> int:
    """All nodes at once. Once one has failed, the others end by themselves (the supervisor's doing) or are ended.

    Returns the code of a run that said how it ended, rather than that of one that was killed for it. Raises MachineError
    with the names of nodes that ssh did not reach, or lost.
    """
    running = {
        subprocess.Popen(
            step.argv, env=environ, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent
        ): step
        for step in steps
    }
    failed: list[tuple[str, int]] = []
    left, began, patience = dict(running), time.monotonic(), float("inf")
    try:
        while left and time.monotonic() < patience:
            for process in [process for process in left if process.poll() is not None]:
                node, code, now = (
                    left.pop(process).node or "this machine",
                    process.returncode,
                    time.monotonic(),
                )
                if code:
                    failed.append((node, code))
                    nothing_runs_yet = now - began < SECONDS_TO_FOLLOW / 3
                    patience = min(patience, now + (1.0 if nothing_runs_yet else SECONDS_TO_FOLLOW))
            time.sleep(0.2)
    finally:
        for process in left:
            process.terminate()
        for process in running:
            process.wait()
    for node, code in failed:
        say(f"{node}: exit code {code}")
    told = [code for _, code in failed if code in _TELLING]
    unreached = [node for node, code in failed if code == _SSH_FAILED]
    if unreached and not told:
        raise MachineError(
            f"ssh did not reach, or lost, {', '.join(unreached)}; its own words are above.",
            fix=f"try it: ssh -o BatchMode=yes {unreached[0]} true",
        )
    return told[0] if told else failed[0][1] if failed else 0
