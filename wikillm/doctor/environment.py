"""Do variables of a launcher, Slurm or a user change the run?"""

from __future__ import annotations

from collections.abc import Mapping

from wikillm.config.environment_variables import NAMES, RunNeeds, find_conflicts
from wikillm.doctor.checks import Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.observe.redact import environment_secrets, names_a_secret, redact_text

_PREFIXES = (
    "NCCL_", "GLOO_", "TORCH_", "CUDA_", "HF_", "TRANSFORMERS_", "SLURM_", "OMP_", "DS_", "UCX_",
    "PYTORCH_", "MASTER_", "SWANLAB_",
)  # fmt: skip
_NAMES = (*NAMES, "LD_LIBRARY_PATH", "LD_PRELOAD")


def relevant_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a run reads, without secrets."""
    secrets = environment_secrets(environ)
    names = [name for name in sorted(environ) if name.startswith(_PREFIXES) or name in _NAMES]
    return {name: redact_text(environ[name], secrets) for name in names if not names_a_secret(name)}


@check("environment", "environment")
def foreign_variables(facts: NodeFacts, needs: Needs) -> Verdict:
    """No variable of another launcher changes the run behind its configuration."""
    asked = RunNeeds(needs.precision, needs.compiles, bool(facts.gpu_count))
    found = find_conflicts(facts.environment, asked)
    if not found:
        return ok("none")
    first = next(iter(found))
    instead = found[first].instead.format(value=facts.environment[first])
    return fail(
        ", ".join(f"{name}={facts.environment[name]}" for name in found),
        "; ".join(f"{name} {rule.does}" for name, rule in found.items()),
        f"unset {' '.join(found)}; {instead}",
    )


@check("environment", "environment")
def forwarded(facts: NodeFacts, needs: Needs) -> Verdict:
    """Variables that are set here and that a run reads also reach the other nodes."""
    if needs.nodes == 1:
        return skip("one node")
    if needs.not_forwarded:
        found = f"not forwarded: {', '.join(needs.not_forwarded)}"
        why = "the other nodes run without them"
        return warn(found, why, "set them in the nodes' shell start-up")
    return ok("all that are set")
