"""Checks the installed software, without importing it: torch alone would take seconds."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from wikillm.doctor.checks import Finding, check, fail, ok, warn
from wikillm.doctor.gpus import read_gpus
from wikillm.doctor.needs import Needs
from wikillm.supervise.node_versions import PACKAGE, code_digest, installed_version

INSTALL = "make env in a checkout; without one: pip install --upgrade wikillm"
SUPPORTED_PYTHON = SpecifierSet(">=3.11,<3.13")
CODE_FOLDER = PACKAGE.parent
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.\-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)")


def digest_of_code() -> str:
    """One digest of WikiLLM's code and, in a checkout, its DeepSpeed recipes."""
    is_checkout = (CODE_FOLDER / "train.py").exists()
    folders = [PACKAGE, CODE_FOLDER / "ds_configs"] if is_checkout else [PACKAGE]
    return code_digest(*folders, suffixes=(".py", ".json", ".yaml"))


def supported_ranges() -> dict[str, str]:
    """Dependencies and their ranges, from the checkout of this code or the installed wheel."""
    project = CODE_FOLDER / "pyproject.toml"
    if project.is_file():
        listed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        listed = [line for line in metadata.requires("wikillm") or () if "extra ==" not in line]
    matches = (_REQUIREMENT.match(line) for line in listed)
    return {match[1]: match[2].strip() for match in matches if match}


def torch_cuda() -> str | None:
    """CUDA version of the installed torch, from its version.py; "": a CPU build, None: no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    try:
        path = Path(found.submodule_search_locations[0]) / "version.py"
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""


@check("python")
def python_version(needs: Needs) -> Finding:
    """Python is one of the supported versions."""
    found = platform.python_version()
    if SUPPORTED_PYTHON.contains(found, prereleases=True):
        return ok(found)
    why = f"WikiLLM runs on {SUPPORTED_PYTHON}"
    return fail(found, why, "PYTHON=python3.12 make env in a checkout")


@check("python")
def packages(needs: Needs) -> Finding:
    """Every package that WikiLLM needs is installed, in a supported version."""
    ranges = supported_ranges()
    versions = {name: installed_version(name) for name in ranges}
    wrong = [
        f"{name} {version or 'missing'} (wanted {ranges[name]})"
        for name, version in versions.items()
        if version is None or not _fits(version, ranges[name])
    ]
    if wrong:
        return fail(", ".join(wrong), f"WikiLLM needs them in {sys.prefix}", INSTALL)
    return ok(f"{len(ranges)} packages")


@check("python")
def torch_build(needs: Needs) -> Finding:
    """torch is a build for the GPUs and the driver of this machine."""
    cuda = torch_cuda()
    gpus = read_gpus()
    if cuda is None:
        return fail("torch is not installed", "nothing can be trained", INSTALL)
    if not gpus.cards:
        why = "the run trains on the CPU"
        return warn(f"CUDA {cuda}, no GPU is seen", why) if cuda else ok("CPU build, no GPU")
    if not cuda:
        found = f"a CPU build of torch, {len(gpus.cards)} GPUs"
        return fail(found, "the run would train on the CPU", "install torch from its CUDA index")
    found = f"CUDA {cuda}, driver {gpus.driver} up to CUDA {gpus.driver_cuda or '?'}"
    newest = Version(gpus.driver_cuda or cuda)
    if newest.major < Version(cuda).major:
        fix = "install a newer driver, or torch for an older CUDA"
        return fail(found, "torch would not find a GPU", fix)
    if newest < Version(cuda):
        why = "it works, except for kernels compiled at run time"
        return warn(found, why, "install a newer driver")
    return ok(found)


def _fits(version: str, wanted: str) -> bool:
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
