"""Do variables of a launcher, Slurm or a user change the run?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wikillm.config.environment_variables import NAMES, RunNeeds, find_conflicts
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.observe.redact import environment_secrets, names_a_secret, redact_text

SLOWING = {
    "CUDA_LAUNCH_BLOCKING": "every kernel waits for the one before",
    "NCCL_P2P_DISABLE": "GPUs of a node exchange data through host memory",
    "NCCL_IB_DISABLE": "traffic between nodes goes over TCP",
    "NCCL_SHM_DISABLE": "processes of a node communicate over the network card",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is checked",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor is allocated by the driver",
}
_OFF = ("", "0", "OFF", "INFO")
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
def slowing_variables(facts: NodeFacts, needs: Needs) -> Finding:
    """No debugging variable slows the run down."""
    env = facts.environment
    found = [name for name in SLOWING if env.get(name, "").upper() not in _OFF]
    if not found:
        return ok("none")
    why = "; ".join(SLOWING[name] for name in found)
    values = ", ".join(f"{name}={env[name]}" for name in found)
    return warn(values, why=why, names=" ".join(found))


@check("environment", "environment")
def foreign_variables(facts: NodeFacts, needs: Needs) -> Finding:
    """No variable of another launcher changes the run behind its configuration."""
    asked = RunNeeds(needs.precision, needs.compiles, bool(facts.gpu_count))
    found = find_conflicts(facts.environment, asked)
    if not found:
        return ok("none")
    return fail(
        ", ".join(f"{foreign.name}={foreign.value}" for foreign in found),
        why="; ".join(f"{foreign.name} {foreign.does}" for foreign in found),
        names=" ".join(foreign.name for foreign in found),
        instead=found[0].instead,
    )


@check("environment", "environment")
def preloaded(facts: NodeFacts, needs: Needs) -> Finding:
    """No library is loaded in place of torch's own."""
    env = facts.environment
    if env.get("LD_PRELOAD"):
        return warn(f"LD_PRELOAD={env['LD_PRELOAD']}", "library")
    folders = env.get("LD_LIBRARY_PATH", "").split(":")
    cuda = [folder for folder in folders if re.search(r"cuda|nccl|cudnn", folder, re.IGNORECASE)]
    if cuda and facts.software and facts.software.torch_cuda:
        return warn(f"LD_LIBRARY_PATH has {cuda[0]}", "cuda")
    return ok("none")


@check("environment", "environment")
def forwarded(facts: NodeFacts, needs: Needs) -> Finding:
    """Variables that are set here and that a run reads also reach the other nodes."""
    if needs.nodes == 1:
        return skip("one node")
    kept = needs.not_forwarded
    return warn(f"not forwarded: {', '.join(kept)}") if kept else ok("all that are set")
