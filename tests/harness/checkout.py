"""The files of the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path


def files_of(repo: Path) -> list[str]:
    """Names of the files that a commit of everything would contain."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=repo, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (repo / name).is_file()]
