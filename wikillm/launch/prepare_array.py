"""`wikillm prepare` as a Slurm array: each task builds its part of a store's shards, a last job finishes the store.

One batch file serves both: inside an array it builds a part, outside it does the rest and writes the manifest. The nodes
share the folders of the sources and of the store. A task that died or ran out of time is given again as it is: it
finds what it had built. The suite runs the text with the variables that Slurm sets, `make multinode` on Slurm itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from wikillm.launch.script import quoted


@dataclass(frozen=True, slots=True)
class Array:
    """Attributes:
    words: of the command line, after `wikillm prepare`.
    tasks: of the array.
    cpus: per task; a task has as many worker processes.
    hours: time limit of a task.
    """

    words: tuple[str, ...]
    tasks: int
    cpus: int
    hours: float
    partition: str | None = None
    account: str | None = None
    name: str = "wikillm-prepare"


def prepare_array(array: Array, command: Sequence[str]) -> str:
    """The batch file; `command` is what it was rendered by."""
    minutes = max(1, round(array.hours * 60))
    options = [
        f"--job-name={array.name}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={array.cpus}",
        f"--time={minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%A-%a.log",
        *([f"--partition={array.partition}"] if array.partition else []),
        *([f"--account={array.account}"] if array.account else []),
    ]
    file = f"{array.name}.sbatch"
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options),
        f"# Written by: {shlex.join(command)} > {file}",
        "# Submit it twice, in the folder of the checkout:",
        f"#   parts=$(sbatch --parsable --array=0-{array.tasks - 1} {file})",
        f'#   sbatch --dependency="afterok:$parts" {file}',
        "set -euo pipefail",
        'if [ -d .venv/bin ]; then PATH="$PWD/.venv/bin:$PATH"; fi',
        "part=()",
        'if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then',
        '  part=(--shards "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT")',
        "fi",
        quoted(("exec", "wikillm", "prepare", *array.words), tail='"${part[@]}"'),
    ]
    return "\n".join(lines) + "\n"
