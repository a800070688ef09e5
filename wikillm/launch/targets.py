"""Renders a launch for a target, looked up by name, and starts it."""

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
from wikillm.launch.kubernetes import kubernetes
from wikillm.launch.local import multi, single, torchrun
from wikillm.launch.restart import Launched
from wikillm.launch.skypilot import sky
from wikillm.launch.slurm import slurm
from wikillm.launch.ssh import ssh
from wikillm.remote.environment import FILE_NAME, write_environment_file

SECONDS_TO_FOLLOW = 15.0
_SSH_FAILED = 255
_PR_SET_PDEATHSIG = 1
_CODES_OF_A_RUN = {code.value for code in ExitCode} - {ExitCode.DONE, ExitCode.BUG}

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
    """Render `launch`. Raises ConfigError for an unknown target or an incomplete launch."""
    if target not in TARGETS:
        fix = did_you_mean(target, TARGETS) or "one of: " + ", ".join(TARGETS)
        raise ConfigError(f"There is no target {target!r}.", fix=fix)
    return TARGETS[target](launch)


def start(launch: Launch, rendering: Rendering, launched: Launched | None = None) -> int:
    """Run the steps of a rendering on this machine. Returns the first exit code that is not 0.

    A single step replaces this process, so that signals reach the launcher and its exit code
    reaches the caller. With `launched` this process stays, and records its children there.

    Raises MachineError if a tool is missing.
    """
    if not rendering.steps:
        raise ConfigError(
            "This launch has to be started on every node.",
            fix="run the script of --print on each node, or add --node-rank N for this node",
        )
    # Look for every tool before anything runs, in the folder of this Python too.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for tool in {step.argv[0] for step in rendering.steps}:
        if shutil.which(tool, path=path) is None:
            fix = f"install {tool}, or run the script of --print on a machine that has it"
            raise MachineError(f"{tool} is not on this machine.", fix=fix)
    if rendering.file is not None:
        write_atomic(Path(rendering.file), rendering.text)
        say(f"wrote {rendering.file}")
    if rendering.writes_environment and launch.variables:
        write_environment_file(Path(launch.workdir) / FILE_NAME, launch.variables)
    environ = {**os.environ, **launch.variables, "PATH": path}
    if any(step.argv[0] == "torchrun" for step in rendering.steps):
        environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would set it with a warning
    # Run the steps: one step in place of this process, several together or one after another.
    if len(rendering.steps) == 1 and rendering.steps[0].stdin is None and launched is None:
        argv = rendering.steps[0].argv
        sys.stdout.flush()
        os.execvpe(argv[0], list(argv), environ)
    if launched is not None or rendering.steps[0].background:
        code = _run_together(rendering.steps, environ, launched)
    else:
        code = _run(rendering.steps, environ)
    if code == 0:
        for note in rendering.notes:
            say(note)
    return code


def _run(steps: tuple[Step, ...], environ: dict[str, str]) -> int:
    """Run the steps one after another, until one fails. Returns the last exit code."""
    for step in steps:
        # A step without `stdin` gets an empty standard input, never the user's.
        done = subprocess.run(step.argv, env=environ, input=step.stdin or "", text=True)
        if done.returncode:
            return done.returncode
    return 0


def _end_with_parent() -> None:
    """Make the kernel send SIGTERM to this child when its parent is killed. (in a new child)

    If the child is ssh, it then closes its terminal, and the remote job saves and ends. The kernel
    watches the thread that forks, which is the main thread here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _run_together(
    steps: tuple[Step, ...], environ: dict[str, str], launched: Launched | None = None
) -> int:
    """Run all steps at once. After a failure, end the steps that the supervisor has not ended.

    Returns the exit code of a node that failed by itself, not of one that was killed afterwards.
    Raises MachineError with the names of nodes that ssh did not reach or lost.
    """
    # Start all steps.
    children = {
        subprocess.Popen(
            step.argv, env=environ, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent
        ): step
        for step in steps
    }
    if launched is not None:
        launched.processes = list(children)
    # Wait for all of them, after the first failure only for a moment.
    failed: list[tuple[str, int]] = []
    running = dict(children)
    began = time.monotonic()
    deadline = float("inf")
    try:
        while running and time.monotonic() < deadline:
            for process in [process for process in running if process.poll() is not None]:
                node = running.pop(process).node or "this machine"
                if process.returncode:
                    failed.append((node, process.returncode))
                    # Ranks that have just been started have no supervisor yet to end them.
                    now = time.monotonic()
                    is_starting = now - began < SECONDS_TO_FOLLOW / 3
                    deadline = min(deadline, now + (1.0 if is_starting else SECONDS_TO_FOLLOW))
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
        for process in children:
            process.wait()
    # Report every failure, and choose the exit code.
    for node, code in failed:
        say(f"{node}: exit code {code}")
    run_codes = [code for _, code in failed if code in _CODES_OF_A_RUN]
    unreached = [node for node, code in failed if code == _SSH_FAILED]
    if unreached and not run_codes:
        raise MachineError(
            f"ssh did not reach, or lost, {', '.join(unreached)}; its own message is above.",
            fix=f"try it: ssh -o BatchMode=yes {unreached[0]} true",
        )
    if run_codes:
        return run_codes[0]
    return failed[0][1] if failed else 0
