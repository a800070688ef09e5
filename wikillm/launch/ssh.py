"""Target `ssh`: one other machine. rsync copies the checkout; the run outlives the connection.

The launch writes three files there: FOLDER/.deepspeed_env (mode 0600, sent through ssh's standard
input, never on a command line), FOLDER/NAME.log and FOLDER/NAME.pid. Files that git ignores are not
copied, so the data must be on that machine already. Create the Python environment there once, with
`make env`.
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
    """A script that copies the checkout, sends the variables and starts the run in the background.

    Raises ConfigError for a bad host.
    """
    if launch.host is None:
        raise ConfigError("The target ssh needs a machine.", fix="--host user@machine")
    host = check_destination(launch.host)
    folder = launch.workdir
    copy = rsync_argv(".", host, folder, (".git", ".venv", FILE_NAME))
    make = ssh_argv(host, f"mkdir -p {shlex.quote(folder)}")
    store = ssh_argv(host, f"umask 077 && cat >{shlex.quote(f'{folder}/{FILE_NAME}')}")
    start = ssh_argv(host, start_command(launch))
    comments = [
        f"Copies this folder to {host}:{folder} and starts the run there.",
        f"Forwarded through {FILE_NAME}: {', '.join(launch.variables) or 'nothing'}.",
        f"Written by: {launch.command}",
    ]
    body = [shlex.join(make), shlex.join(copy)]
    steps = [Step(make), Step(copy)]
    # The script takes the values from its own environment, `--go` from this process.
    if launch.variables:
        names = "|".join(launch.variables)
        body.append(f"env | grep -E {shlex.quote(f'^({names})=')} | {shlex.join(store)}")
        values = "".join(f"{name}={value}\n" for name, value in launch.variables.items())
        steps.append(Step(store, stdin=values))
    log = shlex.quote(f"{folder}/{launch.name}.log")
    follow = f"follow it: {shlex.join(ssh_argv(host, f'tail -n 50 -F {log}'))}"
    body += [f"{shlex.join(start)} </dev/null", f"echo {shlex.quote(follow)}"]
    return Rendering(script(comments, body), (*steps, Step(start)), notes=(follow,))


def start_command(launch: Launch) -> str:
    """Shell text that starts the run in its own session, with log and process id in files."""
    run = "exec " + shlex.join(launch.deepspeed_argv())
    if launch.variables:
        run = f"{{ {READ_IT}; }} && {run}"
    log = shlex.quote(f"{launch.name}.log")
    inner = shlex.quote(f"echo $$ >{shlex.quote(f'{launch.name}.pid')}; {run}")
    return (
        f'cd {shlex.quote(launch.workdir)} && PATH="$PWD/.venv/bin:$PATH" && '
        f"{{ nohup setsid bash -c {inner} >>{log} 2>&1 </dev/null & }}"
    )
