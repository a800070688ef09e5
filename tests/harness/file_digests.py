"""The sha256 of every file in a folder, to compare token stores."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digests(folder: Path, *suffixes: str) -> dict[str, str]:
    """Map each path within the folder to its digest. `suffixes` limits the files."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    }
