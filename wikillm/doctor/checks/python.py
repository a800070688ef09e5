"""Python, packages, and torch's CUDA against the driver's."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Verdict, check, fail, ok, skip, warn

SUPPORTED_PYTHON = SpecifierSet(">=3.11,<3.13")
INSTALL = "make env in a checkout; without one: pip install --upgrade wikillm"


@check("python", "software")
def python_version(facts: NodeFacts, needs: Needs) -> Verdict:
    """Python is one of the supported versions."""
    found = facts.software.python
    if SUPPORTED_PYTHON.contains(found, prereleases=True):
        return ok(found)
    return fail(
        found,
        f"WikiLLM runs on {SUPPORTED_PYTHON}",
        "PYTHON=python3.12 make env in a checkout, or an environment of such a Python",
    )


@check("python", "software")
def packages_there(facts: NodeFacts, needs: Needs) -> Verdict:
    """Every package that WikiLLM needs is installed."""
    missing = [name for name, version in facts.software.packages.items() if version is None]
    if missing:
        return fail(
            f"missing: {', '.join(missing)}",
            f"not installed for {facts.software.executable}",
            INSTALL,
        )
    return ok(f"{len(facts.software.packages)} packages")


@check("python", "software")
def packages_fit(facts: NodeFacts, needs: Needs) -> Verdict:
    """Installed versions are within the supported ranges."""
    wrong = []
    for name, version in facts.software.packages.items():
        if version is not None and not _fits(version, facts.software.ranges.get(name, "")):
            wrong.append(f"{name} {version} (wanted {facts.software.ranges[name]})")
    if wrong:
        return fail(", ".join(wrong), "the tests ran with other versions", INSTALL)
    return ok("all within their ranges")


@check("python", "software")
def torch_build(facts: NodeFacts, needs: Needs) -> Verdict:
    """torch is the build for GPUs where there are GPUs."""
    cuda = facts.software.torch_cuda
    if cuda is None:
        return fail("torch is not installed", "nothing can be trained", INSTALL)
    cards = len(facts.gpus.cards) if facts.gpus else 0
    if not cuda:
        if cards:
            return fail(
                f"a CPU build of torch, {cards} GPUs",
                "the run would train on the CPU",
                "pip install --force-reinstall torch, from the index with CUDA builds",
            )
        return ok("CPU build, no GPU")
    return (
        ok(f"CUDA {cuda}")
        if cards
        else warn(f"CUDA {cuda}, no GPU is seen", "the run trains on the CPU")
    )


@check("python", "software")
def text_encoding(facts: NodeFacts, needs: Needs) -> Verdict:
    """The locale is UTF-8: Chinese text in logs and samples can be shown."""
    found = facts.software.encoding
    if found.lower().replace("-", "") == "utf8":
        return ok(found)
    return warn(found, "Chinese samples are shown as question marks", "export LANG=C.UTF-8")


@check("gpu", "gpus")
def driver_cuda(facts: NodeFacts, needs: Needs) -> Verdict:
    """The driver runs the CUDA version that torch was built for."""
    wheel = facts.software.torch_cuda if facts.software else None
    driver = facts.gpus.driver_cuda
    if not wheel or not driver:
        return skip("no GPU, or a CPU build of torch")
    found = f"driver {facts.gpus.driver} up to CUDA {driver}, torch for {wheel}"
    if Version(driver).major < Version(wheel).major:
        return fail(
            found,
            "torch would not find a GPU",
            "a newer driver, or a build of torch for an older CUDA",
        )
    if Version(driver) < Version(wheel):
        return warn(
            found,
            "works within one major version, except for kernels compiled at run time",
            "a newer driver",
        )
    return ok(found)


def _fits(version: str, wanted: str) -> bool:
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
