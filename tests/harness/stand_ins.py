"""Stand-ins for launchers and cluster tools. Each records its arguments for the test to read.

`ssh` runs its command in a local shell, as sshd does remotely. `srun` starts one shell per task.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_RECORD = """#!{python}
import json, os, sys
line = json.dumps({{"tool": os.path.basename(sys.argv[0]), "argv": sys.argv[1:], "cwd": os.getcwd(),
                   "env": dict(os.environ)}})
handle = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(handle, (line + "\\n").encode())
sys.exit(int(os.environ.get("STAND_IN_CODE", "0")))
"""
_SSH = """#!{python}
import os, sys
cut = sys.argv.index("--")
host, command = sys.argv[cut + 1 :]
environ = {{"PATH": os.environ["PATH"], "HOST": host}}
for name in ("STAND_IN_CODE", "STAND_IN_HOST"):
    if name in os.environ:
        environ[name] = os.environ[name]
if environ.get("STAND_IN_HOST", host) != host:
    environ.pop("STAND_IN_CODE", None)
os.execvpe("sh", ["sh", "-c", command], environ)
"""
_SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = int(os.environ["SLURM_NTASKS"])
running = [subprocess.Popen(words, env={{**os.environ, "SLURM_PROCID": str(i), \
"SLURM_LOCALID": str(i)}}) for i in range(tasks)]
sys.exit(max(process.wait() for process in running))
"""


class StandIns:
    """A folder of stand-ins, placed first on PATH."""

    def __init__(self, folder: Path, *tools: str) -> None:
        self.folder = folder
        self.log = folder / "calls.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for tool in tools:
            text = {"ssh": _SSH, "srun": _SRUN}.get(tool, _RECORD)
            path = folder / tool
            path.write_text(text.format(python=sys.executable, log=str(self.log)))
            path.chmod(0o755)

    def environ(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}", **more}

    def bash(
        self, script: str, *words: str, cwd: Path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        path = self.folder / "script.sh"
        path.write_text(script)
        return subprocess.run(
            ["bash", str(path), *words],
            cwd=cwd,
            env=self.environ(**more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in self.log.read_text().splitlines()]
            if self.log.exists()
            else []
        )
