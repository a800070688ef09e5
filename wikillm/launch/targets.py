"""The targets by name, and how one is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from wikillm.core.errors import ConfigError, MachineError, did_you_mean
from wikillm.core.files import write_atomic
from wikillm.core.log import say
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.hostfile import hostfile
from wikillm.launch.local import multi, single, torchrun
from wikillm.launch.machine import ssh
from wikillm.launch.manifests import kubernetes, sky
from wikillm.launch.slurm import slurm
from wikillm.remote.environment import FILE_NAME, write_environment_file

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
        raise ConfigError(f"There is no target {target!r}.", fix=near or "one of: " + ", ".join(TARGETS))
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
                f"{tool} is not on this machine.", fix=f"install {tool}, or use --print and run it there"
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
    code = _run_together(rendering.steps, environ) if rendering.steps[0].background else _run(rendering.steps, environ)
    if code == 0:
        for note in rendering.notes:
            say(note)
    return code


def _run(steps: tuple[Step, ...], environ: dict[str, str]) -> int:
    for step in steps:
        given = {"input": step.stdin, "text": True} if step.stdin is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(step.argv, env=environ, check=False, **given)  # type: ignore[call-overload]
        if done.returncode:
            return int(done.returncode)
    return 0


def _run_together(steps: tuple[Step, ...], environ: dict[str, str]) -> int:
    """All nodes at once. When one ends with a failure the others are ended too: they would wait for it in a collective."""
    running = [subprocess.Popen(step.argv, env=environ, stdin=subprocess.DEVNULL) for step in steps]
    try:
        left = list(running)
        while left:
            for process in list(left):
                try:
                    code = process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    continue
                left.remove(process)
                if code:
                    return code
        return 0
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()
