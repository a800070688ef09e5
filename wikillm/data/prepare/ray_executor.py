"""Build a store's shards as tasks of a Ray cluster (extra `ray`), which schedules and retries them.

Every node must see the sources and the store's folder under the same paths, and have this version
of WikiLLM. A task builds a few adjacent shards in one process. If its worker dies, Ray runs it
again, and it finds what it had built. `RAY_ADDRESS` names a running cluster; without it one is
started on this machine, with `data.workers` CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wikillm.core.errors import ConfigError, MachineError, WikiLLMError
from wikillm.core.log import say
from wikillm.data.prepare.build import ensure_store
from wikillm.data.prepare.parts import ShardCuts, build_shards, cut_shards
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.workers.progress import Progress, Work

TASKS_PER_CPU = 4
"""Bounds the wait for the slowest task; each task reads a compressed source up to its start."""
RETRIES = 3  # of a task whose worker died
_OBJECT_STORE_BYTES = 80 << 20  # unused; about the least that Ray accepts
_POLL_SECONDS = 0.5


def build_on_ray(plan: BuildPlan) -> None:
    """Build the missing shards on the cluster, then finish the store here.

    Raises ConfigError without Ray, the error of a task, and MachineError for a task that keeps
    dying.
    """
    ray = _import_ray()
    cuts = cut_shards(plan)
    if cuts is None:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, plan.workers)
    try:
        _run(ray, plan, cuts, cuts.missing(plan, range(cuts.shards)))
    finally:
        if is_ours:
            ray.shutdown()
    ensure_store(plan)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    try:
        import ray
    except ImportError:
        raise ConfigError("--executor ray needs Ray.", fix="pip install 'wikillm[ray]'") from None
    return ray


def _connect(ray: Any, workers: int) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    if not address:
        local["object_store_memory"] = _OBJECT_STORE_BYTES
    try:
        ray.init(log_to_driver=False, logging_level="warning", **local)
    except Exception as error:  # Ray documents no type
        raise MachineError(
            "No Ray cluster could be reached or started.",
            got=f"RAY_ADDRESS={address}: {error}",
            fix="ray start --head on one node, RAY_ADDRESS=HOST:6379 here; "
            "or leave RAY_ADDRESS out to use this machine",
        ) from None


def _run(ray: Any, plan: BuildPlan, cuts: ShardCuts, missing: Sequence[int]) -> None:
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, -(-len(missing) // (TASKS_PER_CPU * cpus)))
    tasks = [missing[at : at + size] for at in range(0, len(missing), size)]
    say(f"ray: {len(missing)} shards as {len(tasks)} tasks on {cpus} CPUs")
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(build_in_task)
    job = ray.put((os.getcwd(), replace(plan, workers=1, relay=None), cuts))
    waiting = {task.remote(job, numbers): numbers for numbers in tasks}
    progress = Progress("shards", sum(cuts.size(n) for n in missing), relay=plan.relay)
    try:
        while waiting:
            found, _ = ray.wait(list(waiting), timeout=_POLL_SECONDS)
            progress.tick()
            for reference in found:
                _check(ray, reference)
                done = sum(cuts.size(n) for n in waiting.pop(reference))
                progress.add(Work(source_bytes=done))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
    progress.finish()


def _check(ray: Any, reference: Any) -> None:
    """Raise the error of an ended task."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WikiLLMError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        resume = "start again, it resumes with the missing shards"
        raise MachineError(
            f"A Ray task did not survive {RETRIES} retries.",
            got=str(error),
            fix=f"{resume}; if memory was short: fewer CPUs per node in ray start",
        ) from None


def build_in_task(job: tuple[str, BuildPlan, ShardCuts], numbers: Sequence[int]) -> None:
    """What a task does, in a process of Ray, on one core."""
    folder, plan, cuts = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read by the libraries when they first encode
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    os.chdir(folder)  # paths may be relative to the folder of the command
    build_shards(plan, cuts, numbers)
