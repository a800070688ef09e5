"""What has to be the same on every node of a run, as short text: versions, the code itself, the configuration."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "tokenizers", "numpy")


def facts_of_this_node(config: str) -> dict[str, str]:
    """`config` is the resolved configuration as text; it and the code travel as the first 12 digits of their sha256."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {
        **found,
        "wikillm's code": _code(),
        "configuration": _short(hashlib.sha256(config.encode())),
    }


def _code() -> str:
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return _short(digest)


def _short(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:12]
