"""Versions that must be equal on all nodes of a run: Python, packages, WikiLLM's code, settings."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from wikillm.core.files import files_below

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "tokenizers", "numpy")
PACKAGE = Path(__file__).resolve().parents[1]


def versions_of_this_node(config: str) -> dict[str, str]:
    """The versions on this node, by name. For the code, and for `config` (the resolved
    configuration as text), the version is the start of a digest."""
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
