"""Versions, without importing what has them: torch alone would take seconds."""

from __future__ import annotations

import hashlib
import importlib.util
import locale
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from wikillm.core.files import files_below
from wikillm.doctor.facts import Software

_REQUIREMENT = re.compile(r"([A-Za-z0-9_.\-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)")
_CODE = (".py", ".json", ".yaml")


def gather_software(*, digest: bool = True) -> Software:
    ranges = supported_ranges()
    package = Path(__file__).resolve().parents[2]
    return Software(
        python=platform.python_version(),
        executable=sys.executable,
        packages={name: _version(name) for name in ranges},
        ranges=ranges,
        torch_cuda=torch_cuda(),
        encoding=locale.getpreferredencoding(False),
        code_folder=str(package.parent),
        code_digest=code_digest(package) if digest else "",
    )


def supported_ranges() -> dict[str, str]:
    """Dependencies and their ranges: of the checkout this code lies in, else of the installed wheel."""
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
    if project.is_file():
        listed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        listed = [line for line in metadata.requires("wikillm") or () if "extra ==" not in line]
    matches = (_REQUIREMENT.match(line) for line in listed)
    return {match[1]: match[2].strip() for match in matches if match}


def torch_cuda() -> str | None:
    """CUDA version of the installed torch, "" for a CPU build, None without torch. Read from its version.py."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    try:
        text = (Path(found.submodule_search_locations[0]) / "version.py").read_text(
            encoding="utf-8"
        )
    except OSError:
        return None
    match = re.search(r"^cuda[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""


def code_digest(package: Path) -> str:
    """One digest over WikiLLM's code, presets and the DeepSpeed recipes beside it."""
    digest = hashlib.sha256()
    folders = (
        [package, package.parent / "ds_configs"]
        if (package.parent / "train.py").exists()
        else [package]
    )
    for folder in folders:
        for path in files_below(folder):
            if path.suffix in _CODE:
                digest.update(
                    f"{path.relative_to(folder)}\0".encode()
                    + hashlib.sha256(path.read_bytes()).digest()
                )
    return digest.hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
