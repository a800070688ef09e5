"""Slurm: target `slurm` (a run), and `wikillm prepare` as a job array.

srun starts one task per GPU, without another launcher. So a rank's exit code reaches the batch
script (torchrun would turn 75 into 1), and the signal before the time limit reaches the ranks: they
save and exit with 75, and the script requeues the job. The command always has `--resume auto`, so
the job resumes from its newest checkpoint. A job that `wikillm stop` ended is not requeued: the
rank that sees the request creates a file, which the script finds. A failed job is requeued by the
rules of restart.py; a file of the job counts the restarts without a new checkpoint.

In a prepare array each task builds its part of a store's shards, and a last job finishes the store.
Both jobs use the same batch file. The nodes share the folders of the sources and of the store. A
task that failed or ran out of time can be submitted again: it reuses the parts that it has built.

Tests run both batch files with stand-ins for Slurm's commands; `make multinode` runs Slurm itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from wikillm.core.errors import ExitCode
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.restart import FINAL
from wikillm.launch.script import command_line, quoted

_PREPARE = "wikillm-prepare"
SECONDS_TO_SAVE = 120
SECONDS_TO_FOLLOW = 90
"""Seconds from the first exit of a rank until srun kills the other ranks. Ranks that save and exit
within this time are not killed, so srun's code, the highest of all ranks, is 75."""
_PATH = 'if [ -d .venv/bin ]; then PATH="$PWD/.venv/bin:$PATH"; fi'
_RANK = """\
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_WORLD_SIZE={gpus}
exec python "$@" """.strip()


def slurm(launch: Launch) -> Rendering:
    """An sbatch file. Raises ConfigError without a number of GPUs: Slurm has to reserve them."""
    launch.require_gpus("Slurm")
    file = f"{launch.name}.sbatch"
    return Rendering(_text(launch), (Step(("sbatch", file)),), file=file)


def _text(launch: Launch) -> str:
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
        f"--export={','.join(('PATH', 'HOME', 'USER', 'LANG', *launch.variables))}",
    ]
    rank = _RANK.format(gpus=launch.gpus)
    srun = f"srun --export=ALL --cpus-per-task={launch.cpus} --kill-on-bad-exit=0"
    return _batch_file(
        options,
        launch.partition,
        launch.account,
        f"# Written by: {launch.command}",
        f"# USR1 comes {SECONDS_TO_SAVE} s before the time limit: "
        "the run saves, exits with 75, and is queued again.",
        "set -euo pipefail",
        _PATH,
        'nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"',
        "MASTER_ADDR=\"${nodes%%$'\\n'*}\" WIKILLM_NODES=\"${nodes//$'\\n'/,}\"",
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        'WIKILLM_STOP_MARK="$PWD/.stopped-$SLURM_JOB_ID"  '
        "# `wikillm stop` creates it: then the job is not queued again",
        "export MASTER_ADDR MASTER_PORT WIKILLM_NODES WIKILLM_STOP_MARK PATH",
        'rm -f "$WIKILLM_STOP_MARK"',
        "code=0",
        f"{srun} --wait={SECONDS_TO_FOLLOW} bash -euc '{rank}' \\",
        f"  rank {quoted((*launch.python_entry, *launch.resuming_words))} || code=$?",
        *_requeue(launch),
        'rm -f "$WIKILLM_STOP_MARK"',
        'exit "$code"',
    )


def _requeue(launch: Launch) -> list[str]:
    """Shell lines that requeue the job after the time limit or a failure."""
    final = " | ".join(str(code) for code in sorted(FINAL - {ExitCode.STOPPED}))
    checkpoints = shlex.quote(f"{launch.run_dir or f'runs/{launch.name}'}/checkpoints")
    return [
        'again="" tried=0 at="" counted=".restarts-$SLURM_JOB_ID"',
        'case "$code" in',
        f'  {final}) rm -f "$counted" ;;',
        "  75) again=yes ;;",
        f"  *)  # a failure: at most {launch.max_restarts} restarts without a new checkpoint",
        f'    newest="$(ls {checkpoints} 2>/dev/null | grep "^checkpoint-" | sort -V | tail -n 1)" '
        "|| true",
        '    read -r tried at 2>/dev/null <"$counted" || true',
        '    if [ "$at" != "$newest" ]; then tried=0; fi',
        f'    if [ "$tried" -lt {launch.max_restarts} ]; then again=yes; '
        'echo "$((tried + 1)) $newest" >"$counted"; fi ;;',
        "esac",
        'if [ -n "$again" ] && [ ! -e "$WIKILLM_STOP_MARK" ]; '
        'then scontrol requeue "$SLURM_JOB_ID"; fi',
    ]


@dataclass(frozen=True, slots=True)
class PrepareArray:
    """`wikillm prepare` as a job array.

    Attributes:
        words: the arguments of `wikillm prepare`.
        tasks: number of tasks in the array.
        cpus: per task; also its number of worker processes.
        hours: time limit of a task.
    """

    words: tuple[str, ...]
    tasks: int
    cpus: int
    hours: float
    partition: str | None = None
    account: str | None = None


def prepare_array(array: PrepareArray, command: Sequence[str]) -> str:
    """The batch file of both jobs. `command`: the command that renders it, for a comment."""
    options = [
        f"--job-name={_PREPARE}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={array.cpus}",
        f"--time={_time(array.hours)}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%A-%a.log",
    ]
    file = f"{_PREPARE}.sbatch"
    shards = '"$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"'
    return _batch_file(
        options,
        array.partition,
        array.account,
        f"# Written by: {command_line(command)} > {file}",
        "# Submit it twice, in the folder of the checkout:",
        f"#   parts=$(sbatch --parsable --array=0-{array.tasks - 1} {file})",
        f'#   sbatch --dependency="afterok:$parts" {file}',
        "set -euo pipefail",
        _PATH,
        "part=()",
        'if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then',
        f"  part=(--shards {shards})",
        "fi",
        quoted(("exec", "wikillm", "prepare", *array.words), tail='"${part[@]}"'),
    )


def _batch_file(options: list[str], partition: str | None, account: str | None, *lines: str) -> str:
    if partition:
        options = [*options, f"--partition={partition}"]
    if account:
        options = [*options, f"--account={account}"]
    head = ["#!/usr/bin/env bash", *(f"#SBATCH {option}" for option in options)]
    return "\n".join([*head, *lines]) + "\n"


def _time(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
