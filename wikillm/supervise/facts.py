"""Facts that must be equal on every node of a run, as short texts: versions, code, settings."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from wikillm.core.files import files_below

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "tokenizers", "numpy")
PACKAGE = Path(__file__).resolve().parents[1]


def facts_of_this_node(config: str) -> dict[str, str]:
    """The facts of this node. Of the code and of `config`, the resolved configuration as text, only
    digests are included."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        found[name] = installed_version(name) or "not installed"
    found["wikillm's code"] = code_digest(PACKAGE)
    found["configuration"] = hashlib.sha256(config.encode()).hexdigest()[:12]
    return found


def installed_version(package: str) -> str | None:
    """The version of a package, without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_digest(*folders: Path, suffixes: tuple[str, ...] = (".py",)) -> str:
    """The first 12 digits of a sha256 over names and contents of the files in `folders`."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in files_below(folder):
            if path.suffix in suffixes:
                digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
