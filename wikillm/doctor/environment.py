"""Checks for environment variables of a launcher, of Slurm or of a user that change the run."""

from __future__ import annotations

import os

from wikillm.config.environment_variables import RunNeeds, find_conflicts
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.gpus import count_gpus
from wikillm.doctor.needs import Needs


@check("environment")
def foreign_variables(needs: Needs) -> Finding:
    """No variable of another launcher changes the run behind its configuration."""
    run = RunNeeds(needs.precision, needs.compiles, bool(count_gpus()))
    found = find_conflicts(os.environ, run)
    if not found:
        return ok("none")
    first = next(iter(found))
    instead = found[first].instead.format(value=os.environ[first])
    return fail(
        ", ".join(f"{name}={os.environ[name]}" for name in found),
        "; ".join(f"{name} {rule.does}" for name, rule in found.items()),
        f"unset {' '.join(found)}; {instead}",
    )


@check("environment")
def forwarded(needs: Needs) -> Finding:
    """Variables that are set here and that a run reads also reach the other nodes."""
    if needs.nodes == 1:
        return skip("one node")
    if needs.not_forwarded:
        found = f"not forwarded: {', '.join(needs.not_forwarded)}"
        why = "the other nodes run without them"
        return warn(found, why, "set them in the nodes' shell start-up")
    return ok("all that are set")
