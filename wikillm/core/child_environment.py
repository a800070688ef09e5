"""The environment of child processes that run this code, from whatever folder."""

from __future__ import annotations

import os
from pathlib import Path

_SOURCE = str(Path(__file__).resolve().parents[2])


def environment_with_wikillm() -> dict[str, str]:
    """This process's environment, in which a new Python process imports this copy of WikiLLM."""
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([_SOURCE, *inherited])}
