"""A plan as JSON and as lines for a terminal. Every figure is marked as an estimate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wikillm.config.schema_train import TrainSection
from wikillm.core.units import format_count, format_seconds, format_size
from wikillm.plan.batch import name_ranks
from wikillm.plan.checkpoint import checkpoint_bytes, checkpoints_at_most
from wikillm.plan.choose import Candidate, Machine, settings_of
from wikillm.plan.schedule import five_points
from wikillm.plan.storage import storage_time
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload

ESTIMATE = "estimates by formula: no figure here was measured on a GPU"
STORE_BYTES = 4  # per token


def figures(candidate: Candidate, workload: Workload, machine: Machine) -> dict[str, Any]:
    """One candidate as plain numbers: bytes, seconds, hours; costs in the price's currency."""
    strategy = candidate.strategy
    step = candidate.time.total
    hours = workload.total_tokens / workload.tokens * step / 3600
    per_second = workload.tokens / step
    per_gpu = per_second / machine.ranks
    return {
        "recipe": strategy.recipe,
        "zero_stage": strategy.stage,
        "per_device_train_batch_size": strategy.micro,
        "gradient_accumulation_steps": strategy.accumulation,
        "gradient_checkpointing": strategy.checkpointing,
        "precision": strategy.precision,
        "fits": candidate.fits,
        "misfit": candidate.misfit,
        "memory_bytes": candidate.memory.parts() | {"total": candidate.memory.total},
        "host_bytes_per_node": candidate.host_bytes,
        "communication_bytes_per_step": asdict(candidate.traffic),
        "step_seconds": asdict(candidate.time) | {"total": step},
        "tokens_per_second": per_second,
        "tokens_per_second_per_gpu": per_gpu,
        "mfu": per_gpu * workload.flops_per_token / machine.gpu.peak,
        "hours": hours,
        "gpu_hours": hours * machine.ranks,
        "cost": None if machine.price is None else hours * machine.ranks * machine.price,
    }


def to_json(
    train: TrainSection,
    workload: Workload,
    machine: Machine,
    candidates: list[Candidate],
    *,
    calibration: str | None = None,
    window_shards: int = 8,
) -> dict[str, Any]:
    """The whole plan as JSON values. The first of `candidates` is the planner's choice."""
    strategy = candidates[0].strategy
    disk = _disk(train, workload, strategy)
    rates = five_points(train, max_steps=workload.max_steps, warmup_steps=workload.warmup_steps)
    return {
        "basis": ESTIMATE,
        "calibration": calibration,
        "model": workload.model.label,
        "parameters": workload.parameters,
        "vocab_size": workload.vocab_size,
        "flops_per_token": workload.flops_per_token,
        "sequence_length": workload.sequence_length,
        "loss_kernel": strategy.loss,
        "mlp_kernel": "tiled" if strategy.tiled_mlp else "stock",
        "sequence_parallel_size": strategy.sequence_parallel,
        "gpu": machine.gpu.name,
        "nodes": machine.nodes,
        "gpus_per_node": machine.gpus_per_node,
        "gpu_memory_bytes": machine.gpu.memory,
        "host_memory_bytes": machine.host_memory,
        "assumed_mfu": machine.assumed_mfu(workload, strategy),
        "global_batch_sequences": workload.sequences,
        "global_batch_tokens": workload.tokens,
        "max_steps": workload.max_steps,
        "warmup_steps": workload.warmup_steps,
        "total_tokens": workload.total_tokens,
        "corpus_tokens": workload.train_tokens,
        "learning_rate": {str(step): rate for step, rate in rates.items()},
        "disk_bytes": disk,
        "storage_seconds": storage_time(disk["checkpoint"], machine, window_shards),
        "save_steps": train.save_steps,
        "links_bytes_per_second": {
            "inside_node": machine.gpu.inside_node,
            "between_nodes": machine.gpu.between_nodes,
            "host": machine.gpu.host_link,
        },
        "notes": [*workload.notes, *([machine.gpu.note] if machine.gpu.note else [])],
        "choices": [figures(candidate, workload, machine) for candidate in candidates],
        "arguments": settings_of(strategy),
    }


def _disk(train: TrainSection, workload: Workload, strategy: Strategy) -> dict[str, int]:
    checkpoint = checkpoint_bytes(
        workload.model,
        workload.vocab_size,
        muon=strategy.muon,
        ema=strategy.ema,
        ranks=strategy.ranks,
    )
    return {
        "checkpoint": checkpoint,
        "checkpoints_kept": checkpoint * checkpoints_at_most(train, workload.max_steps),
        "store": STORE_BYTES * workload.train_tokens,
    }


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan of `to_json` as text."""
    best = plan["choices"][0]
    rates = "  ".join(f"{int(step):,}: {rate:.3g}" for step, rate in plan["learning_rate"].items())
    disk = plan["disk_bytes"]
    traffic = best["communication_bytes_per_step"]
    seconds = best["step_seconds"]
    shared = plan["sequence_parallel_size"]
    ranks = name_ranks(plan["nodes"] * plan["gpus_per_node"] // shared, shared)
    length = plan["sequence_length"]
    total = format_count(plan["total_tokens"])
    batch = format_count(plan["global_batch_tokens"])
    kept = format_size(disk["checkpoints_kept"])
    host = format_size(plan["host_memory_bytes"])
    kind = best["gradient_checkpointing"]
    checkpointing = "" if kind == "none" else f", {kind.replace('_', ' ')} checkpointing"
    by_sequences = ""
    if traffic["sequences"]:
        by_sequences = f", {format_size(traffic['sequences'])} for shared sequences"
    return [
        f"model      {plan['model']}: {plan['parameters']:,} parameters, vocabulary "
        f"{plan['vocab_size']:,}, {plan['flops_per_token'] / 1e9:.3g} GFLOP/token at T={length}",
        f"machine    {plan['nodes']} x {plan['gpus_per_node']} {plan['gpu']}, "
        f"{format_size(plan['gpu_memory_bytes'])} each; host memory {host} per node",
        f"batch      {batch} tokens: micro-batch "
        f"{best['per_device_train_batch_size']} x accumulation "
        f"{best['gradient_accumulation_steps']} x {ranks} x T={length}",
        f"steps      {plan['max_steps']:,} ({plan['warmup_steps']:,} warm-up), {total} tokens",
        f"lr at step {rates}",
        f"disk       checkpoint {format_size(disk['checkpoint'])}, at most {kept}; "
        f"token store {format_size(disk['store'])}",
        *_storage_lines(plan, seconds["total"]),
        *([f"calibrated {plan['calibration']}"] if plan["calibration"] else []),
        *(f"note       {note}" for note in plan["notes"]),
        "",
        f"choice     {best['recipe']}{checkpointing}, "
        f"{best['precision']}{', tiled MLP' if plan['mlp_kernel'] == 'tiled' else ''}",
        *_memory_lines(best["memory_bytes"], plan["gpu_memory_bytes"]),
        f"traffic    per GPU and step: {_at(traffic, plan, 'inside_node')} inside the node, "
        f"{_at(traffic, plan, 'between_nodes')} between nodes, "
        f"{_at(traffic, plan, 'host')} to the host{by_sequences}",
        f"step       {_time(seconds['total'])}: compute {_time(seconds['compute'])} "
        f"(assumed MFU {plan['assumed_mfu']:.0%}), "
        f"waiting for traffic {_time(seconds['exposed'])}, "
        f"host {_time(seconds['host'])}",
        "",
        *_table(plan["choices"]),
        "",
        f"these are {plan['basis']}",
        f"run it     {plan['command']}",
    ]


def _storage_lines(plan: dict[str, Any], step: float) -> list[str]:
    storage = plan["storage_seconds"]
    rate = f"{storage['bytes_per_second'] / 1e9:.3g} GB/s a node"
    every = plan["save_steps"] * step
    return [
        f"saving     training waits {_time(storage['copy'])} for the copy to the host; written in "
        f"{_time(storage['write'])} at {rate}, every {_time(every)}",
        f"starting   a checkpoint is verified in {_time(storage['verify'])} and loaded in "
        f"{_time(storage['load'])}; the first window of data takes {_time(storage['data_start'])}",
    ]


def _time(seconds: float) -> str:
    """A duration as text; below a second in milliseconds, so that it is never shown as 0."""
    return f"{seconds * 1000:.3g} ms" if 0 < seconds < 1 else format_seconds(seconds)


def _at(traffic: dict[str, int], plan: dict[str, Any], link: str) -> str:
    """`1.2 GiB (12 GB/s)`: a link's bytes and its assumed speed."""
    speed = f" ({plan['links_bytes_per_second'][link] / 1e9:.3g} GB/s)" if traffic[link] else ""
    return format_size(traffic[link]) + speed


def _memory_lines(memory: dict[str, int], available: int) -> list[str]:
    parts = [f"{name} {format_size(size)}" for name, size in memory.items() if name != "total"]
    share = f"{memory['total'] / available:.0%}"
    return [
        f"memory     per GPU: {format_size(memory['total'])} of {format_size(available)} ({share})",
        f"           {', '.join(parts[:4])}",
        f"           {', '.join(parts[4:])}",
    ]


def _table(candidates: list[dict[str, Any]]) -> list[str]:
    has_cost = candidates[0]["cost"] is not None
    head = f"{'recipe':<15}{'micro':>6}{'accum':>7}{'checkpointing':>20}{'memory':>11}"
    head += f"{'tok/s':>9}{'MFU':>6}{'hours':>10}"
    rows = [head + (f"{'cost':>13}" if has_cost else "")]
    for row in candidates:
        line = (
            f"{row['recipe']:<15}{row['per_device_train_batch_size']:>6}"
            f"{row['gradient_accumulation_steps']:>7}{row['gradient_checkpointing']:>20}"
            f"{format_size(row['memory_bytes']['total']):>11}"
        )
        if not row["fits"]:
            rows.append(f"{line}  {row['misfit']}")
            continue
        tokens = format_count(row["tokens_per_second"])
        line += f"{tokens:>9}{row['mfu']:>6.0%}{row['hours']:>10,.1f}"
        rows.append(line + (f"{row['cost']:>13,.0f}" if has_cost else ""))
    return rows
