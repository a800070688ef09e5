"""Rank program: run a script of benchmarks/ in a process that has already imported torch."""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from harness.programs import leave_launcher

REPO = Path(__file__).resolve().parents[2]


def run_benchmark(script: str, words: list[str]) -> str:
    """Return what `python benchmarks/SCRIPT WORDS` prints. Its child processes are forks."""
    leave_launcher()
    os.chdir(REPO)
    sys.path.insert(0, str(REPO))
    from benchmarks import record

    def run_in_fork(words: list[str]) -> dict[str, Any]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                printed = _printed(script, words)
                os.write(writer, printed.strip().splitlines()[-1].encode())
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            found = answer.read()
        os.waitpid(child, 0)
        return dict(json.loads(found))

    record.run_in_fresh_process = run_in_fork
    return _printed(script, words)


def _printed(script: str, words: list[str]) -> str:
    path = str(REPO / "benchmarks" / script)
    sys.argv = [path, *words]
    out = io.StringIO()
    with redirect_stdout(out):
        runpy.run_path(path, run_name="__main__")
    return out.getvalue()
