"""Target `slurm`: an sbatch file with one task per GPU, which srun starts without another launcher between.

So a rank's exit code reaches the batch script (torchrun would turn 75 into 1), and the signal before the time limit
reaches the ranks themselves: they save, exit with 75, and the script puts the job back into the queue. The job always
says `--resume auto`, so the requeued one goes on from its newest checkpoint. A job that `wikillm stop` ended is not
queued again: whoever sees the request leaves a file. The suite runs it with stand-ins of Slurm's commands,
`make multinode` on Slurm itself: two nodes of tests/harness/slurm.py.
"""

from __future__ import annotations

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import quoted

SECONDS_TO_SAVE = 120
SECONDS_TO_FOLLOW = 90
"""After the first rank has ended; then srun ends the others. All leave together when they can, and srun's code, the
highest of them, is then 75 and not that of a killed one."""
_RANK = """\
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_WORLD_SIZE={gpus}
exec python "$@" """.strip()


def slurm(launch: Launch) -> Rendering:
    """Raises ConfigError without a number of GPUs per node: Slurm has to reserve them."""
    if launch.gpus is None:
        raise ConfigError("Slurm needs the number of GPUs of a node.", fix="--gpus-per-node 8")
    file = f"{launch.name}.sbatch"
    return Rendering(_text(launch), (Step(("sbatch", file)),), file=file)


def _text(launch: Launch) -> str:
    exported = ",".join(("PATH", "HOME", "USER", "LANG", *launch.variables))
    options = [
        f"--job-name={launch.name}",
        f"--nodes={launch.nodes}",
        f"--ntasks-per-node={launch.gpus}",
        f"--gpus-per-node={launch.gpus}",
        f"--cpus-per-task={launch.cpus}",
        f"--time={_time(launch.hours or 24.0)}",
        f"--signal=USR1@{SECONDS_TO_SAVE}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
        f"--export={exported}",
        *([f"--partition={launch.partition}"] if launch.partition else []),
        *([f"--account={launch.account}"] if launch.account else []),
    ]
    words = launch.words if "--resume" in launch.words else ("--resume", "auto", *launch.words)
    entry = ("-m", *launch.entry[1:]) if launch.entry[0] == "--module" else launch.entry
    rank = _RANK.format(gpus=launch.gpus)
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options),
        f"# Written by: {launch.command}",
        f"# USR1 comes {SECONDS_TO_SAVE} s before the time limit: the run saves, exits with 75, and is queued again.",
        "set -euo pipefail",
        'if [ -d .venv/bin ]; then PATH="$PWD/.venv/bin:$PATH"; fi',
        'nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"',
        "MASTER_ADDR=\"${nodes%%$'\\n'*}\" WIKILLM_NODES=\"${nodes//$'\\n'/,}\"",
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        'WIKILLM_STOP_MARK="$PWD/.stopped-$SLURM_JOB_ID"  # `wikillm stop` leaves it: then the job is not queued again',
        "export MASTER_ADDR MASTER_PORT WIKILLM_NODES WIKILLM_STOP_MARK PATH",
        'rm -f "$WIKILLM_STOP_MARK"',
        "code=0",
        f"srun --export=ALL --cpus-per-task={launch.cpus} --kill-on-bad-exit=0 --wait={SECONDS_TO_FOLLOW} bash -euc '{rank}' \\",
        f"  rank {quoted((*entry, *words), indent='  ')} || code=$?",
        'if [ "$code" -eq 75 ] && [ ! -e "$WIKILLM_STOP_MARK" ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'rm -f "$WIKILLM_STOP_MARK"',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _time(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
