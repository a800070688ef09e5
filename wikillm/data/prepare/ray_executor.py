"""Build a store's shards as tasks of a Ray cluster (the extra `ray`): Ray schedules, moves and retries, we do not.

Every node must see the sources and the store's folder under the same paths, and have this version of WikiLLM. A task
builds a few neighbouring shards in one process; one whose worker dies is run again by Ray, and finds what it had
built. `RAY_ADDRESS` names a running cluster; without it one is started on this machine, with `data.workers` CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wikillm.core.errors import ConfigError, MachineError, WikiLLMError
from wikillm.core.log import say
from wikillm.data.prepare.build import ensure_store, finished_shards
from wikillm.data.prepare.parts import Ready, build_shards, ready_for_parts
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.workers.progress import Progress, Work

TASKS_PER_CPU = 4  # so that no CPU waits long for the slowest one; each task reads a compressed source up to its start
RETRIES = 3  # of a task whose worker died
_OBJECT_STORE_BYTES = 80 << 20  # nothing goes through it; about the least that Ray takes
_POLL_SECONDS = 0.5


def build_on_ray(plan: BuildPlan) -> None:
    """Build the missing shards on the cluster, then finish the store here.

    Raises ConfigError without the extra, what a task refused (WikiLLMError), and MachineError for a task that went on dying.
    """
    ray = _import_ray()
    ready = ready_for_parts(plan)
    if ready is None:
        return
    done = finished_shards(plan.store)
    missing = [n for n in range(ready.shards) if not ready.has(done.get(n), n)]
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, plan.workers)
    try:
        _run(ray, plan, ready, missing)
    finally:
        if is_ours:
            ray.shutdown()
    ensure_store(plan)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError:
        raise ConfigError("--executor ray needs Ray.", fix="pip install 'wikillm[ray]'") from None
    return ray


def _connect(ray: Any, workers: int) -> None:
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="warning")
            return
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    except (
        Exception
    ) as error:  # whatever Ray raises when there is no cluster or none can be started
        raise MachineError(
            "No Ray cluster could be reached or started.",
            got=f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}: {error}",
            fix="ray start --head on one node, RAY_ADDRESS=HOST:6379 here; or leave RAY_ADDRESS out to use this machine",
        ) from None


def _run(ray: Any, plan: BuildPlan, ready: Ready, missing: Sequence[int]) -> None:
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, -(-len(missing) // (TASKS_PER_CPU * cpus)))
    tasks = [missing[at : at + size] for at in range(0, len(missing), size)]
    say(f"ray: {len(missing)} shards as {len(tasks)} tasks on {cpus} CPUs")
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(build_in_task)
    job = ray.put((os.getcwd(), replace(plan, workers=1, relay=None), ready))
    waiting = {task.remote(job, numbers): numbers for numbers in tasks}
    progress = Progress("shards", sum(_size(ready, n) for n in missing), relay=plan.relay)
    try:
        while waiting:
            found, _ = ray.wait(list(waiting), timeout=_POLL_SECONDS)
            progress.tick()
            for reference in found:
                _answer(ray, reference)
                progress.add(
                    Work(source_bytes=sum(_size(ready, n) for n in waiting.pop(reference)))
                )
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
    progress.finish()


def _answer(ray: Any, reference: Any) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WikiLLMError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise MachineError(
            f"A Ray task did not survive {RETRIES} retries.",
            got=str(error),
            fix="start again, it goes on with the missing shards; if memory was short: fewer CPUs per node in ray start",
        ) from None


def _size(ready: Ready, number: int) -> int:
    return ready.cuts[number + 1].position - ready.cuts[number].position


def build_in_task(job: tuple[str, BuildPlan, Ready], numbers: Sequence[int]) -> None:
    """What a task does, in a process of Ray's, on one core."""
    folder, plan, ready = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read by the libraries when they first encode
    os.environ["RAYON_NUM_THREADS"] = os.environ["FASTOKENS_BPE_THREADS"] = "1"
    os.chdir(folder)  # paths may be relative to where the command was given
    build_shards(plan, ready, numbers)
