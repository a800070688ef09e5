"""Target `hostfile`: DeepSpeed on several nodes, one launcher per node, started over ssh.

Plain `deepspeed --hostfile` starts the nodes with pdsh. It ends a job with a remote `pkill -f` on
the command line, which can match other people's processes. `--no_ssh` does neither, so this target
uses it. The checkout and the run directory must be in a shared folder at the same path on all
nodes. The forwarded variables are in the checkout's .deepspeed_env, mode 0600. If the connection to
a node is lost, the ranks there end.
"""

from __future__ import annotations

import shlex

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import script
from wikillm.remote.environment import FILE_NAME, READ_IT
from wikillm.remote.hosts import Host, read_hostfile
from wikillm.remote.ssh import ssh_argv

WAIT = (
    "code=0",
    "# After the first failure the supervisor has 15 s to end the other nodes and report why.",
    'for _ in "${pids[@]}"; do wait -n || { code=$?; break; }; done',
    'for _ in {1..15}; do if [ -z "$(jobs -rp)" ]; then break; fi; sleep 1; done',
    'kill "${pids[@]}" 2>/dev/null || true',
    "wait || true",
    'exit "$code"',
)


def hostfile(launch: Launch) -> Rendering:
    """A script that starts all nodes, waits for them, and exits with the code of the first failure.

    Raises ConfigError with file:line for a bad hostfile.
    """
    if launch.hostfile is None:
        raise ConfigError(
            "The target hostfile needs a hostfile.",
            fix="--hostfile FILE, one line per node: node1 slots=8",
        )
    hosts = tuple(h for h in read_hostfile(launch.hostfile) if h.name not in launch.without)
    per_node = [
        ssh_argv(host.name, node_command(launch, hosts, rank), terminal=True)
        for rank, host in enumerate(hosts)
    ]
    # The script starts the nodes and waits for them, as `targets.start` does for `--go`.
    comments = [
        f"DeepSpeed on {len(hosts)} nodes, {sum(host.slots for host in hosts)} GPUs.",
        f"Forwarded through {FILE_NAME}: {', '.join(launch.variables) or 'nothing'}.",
        f"Written by: {launch.command}",
    ]
    body = [*_write_environment(launch), "pids=()"]
    body += [f"{shlex.join(argv)} </dev/null &\npids+=($!)" for argv in per_node]
    steps = (
        Step(argv, background=True, node=host.name)
        for host, argv in zip(hosts, per_node, strict=True)
    )
    return Rendering(script(comments, [*body, *WAIT]), tuple(steps), writes_environment=True)


def _write_environment(launch: Launch) -> list[str]:
    """Shell lines that write the forwarded variables to a file that only its owner can read."""
    if not launch.variables:
        return []
    file = shlex.quote(f"{launch.workdir}/{FILE_NAME}")
    names = "|".join(launch.variables)
    return [f"rm -f {file}", f"(umask 077 && env | grep -E '^({names})=' >{file})"]


def node_command(launch: Launch, hosts: tuple[Host, ...], rank: int) -> str:
    """Shell text that starts node `rank`, if it has the folder, all files and DeepSpeed."""
    argv = ["deepspeed", "--quiet", "--hostfile", str(launch.hostfile)]
    argv += ["--no_ssh", "--node_rank", str(rank)]
    argv += [f"--exclude={'@'.join(launch.without)}"] if launch.without else []
    argv += ["--master_addr", launch.master_addr or hosts[0].name]
    argv += ["--master_port", str(launch.master_port), *launch.entry, *launch.words]
    folder = shlex.quote(launch.workdir)
    lacking = f"echo wikillm: {hosts[rank].name} has no"
    steps = [
        f"{{ cd {folder} || {{ {lacking} {folder}; exit 3; }}; }}",
        'PATH="$PWD/.venv/bin:$PATH"',
    ]
    # Without the hostfile, DeepSpeed would start a run of this node alone.
    needed = {
        launch.entry[0]: "[ -e {} ]",
        str(launch.hostfile): "[ -f {} ]",
        "deepspeed": "command -v {} >/dev/null",
    }
    for name, test in needed.items():
        if not name.startswith("-"):
            word = shlex.quote(name)
            refuse = f"{lacking} {word} in {folder}; exit 3;"
            steps.append(f"{{ {test.format(word)} || {{ {refuse} }}; }}")
    steps.append(f"export WIKILLM_NODES={','.join(host.name for host in hosts)}")
    steps += [f"{{ {READ_IT}; }}"] if launch.variables else []
    return " && ".join([*steps, "exec " + shlex.join(argv)])
