"""A separate Slurm on the nodes of `netns`: munged, slurmctld on the first node, slurmd on each.

Uses Debian's slurm-wlm and munge. Their state, keys and sockets are in a temporary folder, and /etc
is not read. The GPUs are other device files (/dev/zero, /dev/null), so Slurm counts and reserves
`--gpus-per-node` as on a cluster. Every node reports the same small size to Slurm. The CPUs are
those of this machine.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.netns import Cluster

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
GPUS = 2
"""Of a node."""
_GPU_FILES = ("/dev/zero", "/dev/null")


def lacking() -> str | None:
    """Return the first of Slurm's programs that is not installed, or None."""
    names = [name for name in TOOLS if shutil.which(name, path=_PATH) is None]
    return f"not installed: {', '.join(names)} (slurm-wlm, munge)" if names else None


@dataclass(frozen=True)
class Slurm:
    """A scheduler on `nodes`. The controller runs on `first`, and jobs are submitted there."""

    nodes: Cluster
    folder: Path
    first: str

    @property
    def environ(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *argv: str, cwd: Path | None = None, **more: str) -> str:
        """Run a command on the first node. Raises AssertionError with its output if it fails."""
        done = self.nodes.run(self.first, argv, cwd=cwd or self.folder, **self.environ, **more)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job in `scontrol`: JobState, Restarts, ExitCode ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, timeout: float = 300.0) -> dict[str, str]:
        """Wait until the job is in one of `states`, and return its fields."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (job := self.job(number))["JobState"] in states:
                return job
            time.sleep(0.5)
        raise AssertionError(f"job {number} is {self.job(number)}, not {states}: {self.logs()}")

    def logs(self) -> str:
        """The last lines of the daemons' logs, for a failed test."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(
            f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files
        )


@contextmanager
def slurm(nodes: Cluster, folder: Path) -> Iterator[Slurm]:
    """Start Slurm on all `nodes` and wait until they are idle. It ends with the nodes."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)  # munged refuses parent folders that others can write to
    first, *_ = names = list(nodes.nodes)
    made = Slurm(nodes, folder, first)
    _configure(folder, names, {name: node.address for name, node in nodes.nodes.items()})
    daemons = [_start(made, first, "munged", "--foreground", "--force",
                      f"--key-file={folder / 'munge.key'}",
                      f"--socket={folder / 'munge.socket'}", f"--pid-file={folder / 'munged.pid'}",
                      f"--seed-file={folder / 'munged.seed'}",
                      f"--log-file={folder / 'munged.log'}")]  # fmt: skip
    try:
        _until(made, daemons, lambda: (folder / "munge.socket").exists())
        daemons.append(_start(made, first, "slurmctld", "-D", "-c"))
        daemons += [_start(made, name, "slurmd", "-D", "-c") for name in names]
        _until(made, daemons, lambda: _idle(made) == len(names))
        yield made
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _configure(folder: Path, names: list[str], addresses: dict[str, str]) -> None:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    # cgroup/v1 also works without systemd.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in _GPU_FILES))
    values = {
        "ClusterName": "test",
        "SlurmctldHost": f"{names[0]}({addresses[names[0]]})",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'munge.socket'}",
        "CredType": "cred/munge",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "StateSaveLocation": str(folder / "state"),
        "SlurmdSpoolDir": f"{folder}/spool-%n",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "JobRequeue": "1",
        "ReturnToService": "2",
        "SchedulerParameters": "sched_min_interval=1",
        "KillWait": "30",
        "GresTypes": "gpu",
    }
    lines = [f"{name}={value}" for name, value in values.items()]
    for name in names:
        lines.append(
            f"NodeName={name} NodeAddr={addresses[name]} CPUs={GPUS} RealMemory=1000 "
            f"Gres=gpu:{GPUS}"
        )
    lines.append(
        f"PartitionName=main Nodes={','.join(names)} Default=YES MaxTime=INFINITE State=UP"
    )
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "state").mkdir()


def _start(made: Slurm, node: str, *argv: str) -> subprocess.Popen[bytes]:
    return made.nodes.popen(
        node, argv, cwd=made.folder, log=made.folder / f"{argv[0]}.{node}.out.log", **made.environ
    )


def _idle(made: Slurm) -> int:
    done = made.nodes.run(
        made.first,
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        cwd=made.folder,
        **made.environ,
    )
    return done.stdout.split().count("idle") if done.returncode == 0 else 0


def _until(made: Slurm, daemons: list[subprocess.Popen[bytes]], holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and all(daemon.poll() is None for daemon in daemons):
        if holds():
            return
        time.sleep(0.2)
    raise RuntimeError(f"Slurm did not come up:\n{made.logs()}")
