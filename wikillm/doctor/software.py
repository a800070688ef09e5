"""Is the right software installed? Nothing is imported: torch alone would take seconds."""

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

from wikillm.doctor.checks import Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import NodeFacts, SoftwareFacts
from wikillm.doctor.needs import Needs
from wikillm.supervise.facts import PACKAGE, code_digest, installed_version

INSTALL = "make env in a checkout; without one: pip install --upgrade wikillm"
SUPPORTED_PYTHON = SpecifierSet(">=3.11,<3.13")
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.\-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)")
_CODE = (".py", ".json", ".yaml")


def gather_software(*, digest: bool = True) -> SoftwareFacts:
    ranges = supported_ranges()
    root = PACKAGE.parent
    folders = [PACKAGE, root / "ds_configs"] if (root / "train.py").exists() else [PACKAGE]
    return SoftwareFacts(
        python=platform.python_version(),
        executable=sys.executable,
        packages={name: installed_version(name) for name in ranges},
        ranges=ranges,
        torch_cuda=torch_cuda(),
        code_folder=str(root),
        code_digest=code_digest(*folders, suffixes=_CODE) if digest else "",
    )


def supported_ranges() -> dict[str, str]:
    """Dependencies and their ranges, from the checkout of this code or the installed wheel."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        listed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        listed = [line for line in metadata.requires("wikillm") or () if "extra ==" not in line]
    matches = (_REQUIREMENT.match(line) for line in listed)
    return {match[1]: match[2].strip() for match in matches if match}


def torch_cuda() -> str | None:
    """CUDA version in the installed torch's version.py, "" for a CPU build, None without torch."""
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


@check("python", "software")
def python_version(facts: NodeFacts, needs: Needs) -> Verdict:
    """Python is one of the supported versions."""
    found = facts.software.python
    is_supported = SUPPORTED_PYTHON.contains(found, prereleases=True)
    if is_supported:
        return ok(found)
    why = f"WikiLLM runs on {SUPPORTED_PYTHON}"
    return fail(found, why, "PYTHON=python3.12 make env in a checkout")


@check("python", "software")
def packages_there(facts: NodeFacts, needs: Needs) -> Verdict:
    """Every package that WikiLLM needs is installed."""
    missing = [name for name, version in facts.software.packages.items() if version is None]
    if missing:
        why = f"not installed for {facts.software.executable}"
        return fail(f"missing: {', '.join(missing)}", why, INSTALL)
    return ok(f"{len(facts.software.packages)} packages")


@check("python", "software")
def packages_fit(facts: NodeFacts, needs: Needs) -> Verdict:
    """Installed versions are within the supported ranges."""
    wrong = []
    for name, version in facts.software.packages.items():
        if version is not None and not _fits(version, facts.software.ranges.get(name, "")):
            wrong.append(f"{name} {version} (wanted {facts.software.ranges[name]})")
    if wrong:
        return fail(", ".join(wrong), "WikiLLM is tested with other versions", INSTALL)
    return ok("all within their ranges")


@check("python", "software")
def torch_build(facts: NodeFacts, needs: Needs) -> Verdict:
    """torch is the build for GPUs where there are GPUs."""
    cuda = facts.software.torch_cuda
    if cuda is None:
        return fail("torch is not installed", "nothing can be trained", INSTALL)
    if not cuda and facts.gpu_count:
        found = f"a CPU build of torch, {facts.gpu_count} GPUs"
        return fail(found, "the run would train on the CPU", "install torch from its CUDA index")
    if cuda and not facts.gpu_count:
        return warn(f"CUDA {cuda}, no GPU is seen", "the run trains on the CPU")
    return ok(f"CUDA {cuda}" if cuda else "CPU build, no GPU")


@check("gpu", "gpus")
def driver_cuda(facts: NodeFacts, needs: Needs) -> Verdict:
    """The driver runs the CUDA version that torch was built for."""
    wheel = facts.software.torch_cuda if facts.software else None
    driver = facts.gpus.driver_cuda
    if not wheel or not driver:
        return skip("no GPU, or a CPU build of torch")
    found = f"driver {facts.gpus.driver} up to CUDA {driver}, torch for {wheel}"
    if Version(driver).major < Version(wheel).major:
        fix = "install a newer driver, or torch for an older CUDA"
        return fail(found, "torch would not find a GPU", fix)
    if Version(driver) < Version(wheel):
        return warn(
            found, "it works, except for kernels compiled at run time", "install a newer driver"
        )
    return ok(found)


def _fits(version: str, wanted: str) -> bool:
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
