"""Variables that a launcher, Slurm or a user left, and that change a run without a word."""

from __future__ import annotations

import re

from wikillm.config.environment_variables import RunNeeds, find_conflicts
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Verdict, check, fail, ok, skip, warn

SLOWING = {
    "CUDA_LAUNCH_BLOCKING": "every kernel waits for the one before",
    "NCCL_P2P_DISABLE": "GPUs of a node exchange data through host memory",
    "NCCL_IB_DISABLE": "traffic between nodes goes over TCP",
    "NCCL_SHM_DISABLE": "processes of a node talk over the network card",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is checked",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor asks the driver for memory",
}
_OFF = ("", "0", "OFF", "INFO")


@check("environment", "environment")
def launcher_variables(facts: NodeFacts, needs: Needs) -> Verdict:
    """No RANK or WORLD_SIZE of an earlier launcher is set."""
    env = facts.environment
    left = [
        f"{name}={env[name]}"
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if name in env
    ]
    if left and "SLURM_PROCID" not in env:
        return warn(
            ", ".join(left),
            "a run started without a launcher believes them",
            "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE",
        )
    return ok("none")


@check("environment", "environment")
def slowing_variables(facts: NodeFacts, needs: Needs) -> Verdict:
    """No debugging variable slows the run down."""
    env = facts.environment
    found = [name for name in SLOWING if env.get(name, "").upper() not in _OFF]
    if found:
        return warn(
            ", ".join(f"{name}={env[name]}" for name in found),
            "; ".join(SLOWING[name] for name in found),
            f"unset {' '.join(found)}",
        )
    return ok("none")


@check("environment", "environment")
def foreign_variables(facts: NodeFacts, needs: Needs) -> Verdict:
    """No variable of another launcher changes the run behind its configuration."""
    has_gpu = bool(facts.gpus and facts.gpus.cards)
    asked = RunNeeds(needs.precision, needs.compiles, has_gpu)
    found = find_conflicts(facts.environment, asked)
    if found:
        return fail(
            ", ".join(f"{foreign.name}={foreign.value}" for foreign in found),
            "; ".join(f"{foreign.name} {foreign.does}" for foreign in found),
            f"unset {' '.join(foreign.name for foreign in found)}; {found[0].instead}",
        )
    return ok("none")


@check("environment", "environment")
def preloaded(facts: NodeFacts, needs: Needs) -> Verdict:
    """No library is put in front of torch's own."""
    env = facts.environment
    if env.get("LD_PRELOAD"):
        return warn(
            f"LD_PRELOAD={env['LD_PRELOAD']}",
            "it is loaded into every process of the run",
            "unset LD_PRELOAD",
        )
    path = env.get("LD_LIBRARY_PATH", "")
    cuda = [
        folder for folder in path.split(":") if re.search(r"cuda|nccl|cudnn", folder, re.IGNORECASE)
    ]
    if cuda and facts.software and facts.software.torch_cuda:
        return warn(
            f"LD_LIBRARY_PATH has {cuda[0]}",
            "torch brings its own CUDA, NCCL and cuDNN; another version may be taken",
            "unset LD_LIBRARY_PATH",
        )
    return ok("none")


@check("environment", "environment")
def slurm(facts: NodeFacts, needs: Needs) -> Verdict:
    """Slurm's variables agree with each other."""
    env = facts.environment
    if "SLURM_JOB_ID" not in env:
        return skip("not in a Slurm job")
    nodes, tasks = _number(env, "SLURM_JOB_NUM_NODES", "SLURM_NNODES"), _number(env, "SLURM_NTASKS")
    per_node = _tasks_per_node(env.get("SLURM_TASKS_PER_NODE", ""))
    listed = count_nodes(env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or "")
    found = f"{nodes} nodes, {tasks} tasks, per node {env.get('SLURM_TASKS_PER_NODE', '?')}"
    if nodes and listed and nodes != listed:
        return fail(
            f"{found}; the node list has {listed}",
            "variables of two jobs are mixed",
            "start from a fresh `sbatch` or `salloc`",
        )
    if tasks and per_node and sum(per_node) != tasks:
        return fail(
            f"{found}, together {sum(per_node)}",
            "variables of two jobs are mixed",
            "start from a fresh `sbatch` or `salloc`",
        )
    if per_node and len(set(per_node)) > 1:
        return fail(
            found,
            "nodes with different numbers of processes are not supported",
            "--ntasks-per-node=N",
        )
    return ok(found)


@check("environment", "environment")
def forwarded(facts: NodeFacts, needs: Needs) -> Verdict:
    """What is set here and read by a run also reaches the other nodes."""
    if needs.nodes == 1:
        return skip("one node")
    if needs.not_forwarded:
        return warn(
            f"stay here: {', '.join(needs.not_forwarded)}",
            "the other nodes run without them",
            "set them in the nodes' shell start-up, if the run needs them",
        )
    return ok("all that is set")


def count_nodes(text: str) -> int:
    """Hosts in Slurm's short form: `gpu[01-03,07],login` is 5."""
    total = 0
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        hosts = 1
        for ranges in re.findall(r"\[([^\]]*)\]", word):
            hosts *= sum(_length(part) for part in ranges.split(","))
        total += hosts
    return total


def _length(part: str) -> int:
    first, _, last = part.partition("-")
    return int(last) - int(first) + 1 if last else 1


def _tasks_per_node(text: str) -> list[int]:
    """`8(x2),4` -> [8, 8, 4]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _number(env: dict[str, str], *names: str) -> int | None:
    text = next((env[name] for name in names if env.get(name)), "")
    return int(text) if text.isdigit() else None
