"""Target `ssh`: one other machine. The checkout is copied with rsync, the run goes on after the connection ends.

Over there: FOLDER/.deepspeed_env (mode 0600, written through ssh's standard input, never on a command line),
FOLDER/NAME.log and FOLDER/NAME.pid. What git ignores is not copied, so data must be there already, or be named by a path
that exists there; the environment is made there once with `make env`.
"""

from __future__ import annotations

import shlex

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import script
from wikillm.remote.environment import FILE_NAME, READ_IT
from wikillm.remote.hosts import check_destination
from wikillm.remote.ssh import rsync_argv, ssh_argv


def ssh(launch: Launch) -> Rendering:
    """Copy, forward the environment, start in the background. Raises ConfigError for a host that is none."""
    if launch.host is None:
        raise ConfigError("The target ssh needs a machine.", fix="--host user@machine")
    host, folder = check_destination(launch.host), launch.workdir
    copy = rsync_argv(".", host, folder, (".git", ".venv", FILE_NAME))
    make = ssh_argv(host, f"mkdir -p {shlex.quote(folder)}")
    store = ssh_argv(host, f"umask 077 && cat >{shlex.quote(f'{folder}/{FILE_NAME}')}")
    start = ssh_argv(host, start_command(launch))
    values = "".join(f"{name}={value}\n" for name, value in launch.variables.items())
    comments = [
        f"Copies this folder to {host}:{folder} and starts the run there.",
        f"Forwarded through {FILE_NAME}: {', '.join(launch.variables) or 'nothing'}.",
        f"Written by: {launch.command}",
    ]
    body = [shlex.join(make), shlex.join(copy)]
    steps = [Step(make), Step(copy)]
    if launch.variables:
        names = "|".join(launch.variables)
        body.append(f"env | grep -E {shlex.quote(f'^({names})=')} | {shlex.join(store)}")
        steps.append(Step(store, stdin=values))
    follow = shlex.join(
        ssh_argv(host, f"tail -n 50 -F {shlex.quote(f'{folder}/{launch.name}.log')}")
    )
    return Rendering(
        script(
            comments,
            [
                *body,
                f"{shlex.join(start)} </dev/null",
                f"echo {shlex.quote(f'follow it: {follow}')}",
            ],
        ),
        (*steps, Step(start)),
        notes=(f"follow it: {follow}",),
    )


def start_command(launch: Launch) -> str:
    """What the other machine's shell runs: a session of its own, its log and its process id in files."""
    count = () if launch.gpus is None else ("--num_gpus", str(launch.gpus))
    argv = (
        "deepspeed",
        *count,
        "--master_port",
        str(launch.master_port),
        *launch.entry,
        *launch.words,
    )
    inner = " && ".join(
        [*([f"{{ {READ_IT}; }}"] if launch.variables else []), "exec " + shlex.join(argv)]
    )
    log, pid = shlex.quote(f"{launch.name}.log"), shlex.quote(f"{launch.name}.pid")
    return (
        f'cd {shlex.quote(launch.workdir)} && PATH="$PWD/.venv/bin:$PATH" && '
        f"{{ nohup setsid bash -c {shlex.quote(f'echo $$ >{pid}; {inner}')} >>{log} 2>&1 </dev/null & }}"
    )
