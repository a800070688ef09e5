"""A plan as JSON and as lines for a terminal. Everything it says is an estimate, and it says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wikillm.config.resolved import Resolved
from wikillm.core.units import format_count, format_seconds, format_size
from wikillm.plan.batch import name_ranks
from wikillm.plan.checkpoint import Written, checkpoint_bytes
from wikillm.plan.choose import Choice, Machine
from wikillm.plan.job import Job
from wikillm.plan.schedule import five_points
from wikillm.plan.time import default_mfu

ESTIMATE = "estimates by formula: no figure here was measured on a GPU"
STORE_BYTES = 4


def figures(choice: Choice, job: Job, machine: Machine, price: float | None) -> dict[str, Any]:
    """One choice as plain numbers: bytes, seconds, hours, and the price's currency."""
    setup, step = choice.setup, choice.time.total
    hours = _tokens(job) / job.tokens * step / 3600
    per_second = job.tokens / step
    return {
        "recipe": setup.recipe,
        "zero_stage": setup.stage,
        "per_device_train_batch_size": setup.micro,
        "gradient_accumulation_steps": setup.accumulation,
        "gradient_checkpointing": setup.checkpointing,
        "precision": setup.precision,
        "fits": choice.fits,
        "misfit": choice.misfit,
        "memory_bytes": choice.memory.parts() | {"total": choice.memory.total},
        "host_bytes_per_node": choice.host_bytes,
        "communication_bytes_per_step": asdict(choice.traffic),
        "step_seconds": asdict(choice.time) | {"total": step},
        "tokens_per_second": per_second,
        "tokens_per_second_per_gpu": per_second / machine.ranks,
        "mfu": per_second / machine.ranks * job.flops_per_token / machine.gpu.peak,
        "hours": hours,
        "gpu_hours": hours * machine.ranks,
        "cost": None if price is None else hours * machine.ranks * price,
    }


def to_json(
    resolved: Resolved,
    job: Job,
    machine: Machine,
    choices: list[Choice],
    *,
    mfu: float | None,
    price: float | None,
    calibration: str | None = None,
) -> dict[str, Any]:
    """The whole plan: the first of `choices` is the one to take."""
    train = resolved.config.train
    setup = choices[0].setup
    stage = None if setup.recipe == "ddp" else setup.stage
    written = Written(
        setup.precision, stage, train.optimizer == "muon", train.ema_decay > 0, setup.ranks
    )
    checkpoint = checkpoint_bytes(resolved.config.model, job.shape.vocab_size, written)
    return {
        "basis": ESTIMATE,
        "calibration": calibration,
        "model": resolved.config.model.preset,
        "parameters": job.shape.parameters,
        "vocab_size": job.shape.vocab_size,
        "flops_per_token": job.flops_per_token,
        "sequence_length": job.shape.sequence_length,
        "loss_kernel": job.loss,
        "mlp_kernel": "tiled" if job.tiled_mlp else "stock",
        "sequence_parallel_size": job.sequence_parallel,
        "gpu": machine.gpu.name,
        "nodes": machine.nodes,
        "gpus_per_node": machine.gpus_per_node,
        "gpu_memory_bytes": machine.gpu.memory,
        "host_memory_bytes": machine.host_memory,
        "assumed_mfu": default_mfu(job.shape.parameters, job.loss, machine.gpu)
        if mfu is None
        else mfu,
        "global_batch_sequences": job.sequences,
        "global_batch_tokens": job.tokens,
        "max_steps": job.max_steps,
        "warmup_steps": job.warmup_steps,
        "total_tokens": _tokens(job),
        "corpus_tokens": job.train_tokens,
        "learning_rate": {
            str(step): rate
            for step, rate in five_points(
                train, max_steps=job.max_steps, warmup_steps=job.warmup_steps
            ).items()
        },
        "disk_bytes": {
            "checkpoint": checkpoint,
            "checkpoints_kept": checkpoint
            * (train.save_total_limit + 1),  # one more while the next is written
            "store": STORE_BYTES * job.train_tokens,
        },
        "links_bytes_per_second": {
            "inside_node": machine.gpu.inside_node,
            "between_nodes": machine.gpu.between_nodes,
            "host": machine.gpu.host_link,
        },
        "notes": [*job.notes, *([machine.gpu.note] if machine.gpu.note else [])],
        "choices": [figures(choice, job, machine, price) for choice in choices],
        "arguments": arguments(choices[0]),
    }


def arguments(choice: Choice) -> list[str]:
    """What to add to the command line of the run, so that it trains in this way."""
    setup = choice.setup
    return [
        "--deepspeed",
        setup.recipe,
        f"train.per_device_train_batch_size={setup.micro}",
        f"train.gradient_checkpointing={setup.checkpointing}",
    ]


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan of `to_json` as text."""
    best = plan["choices"][0]
    rates = "  ".join(f"{int(step):,}: {rate:.3g}" for step, rate in plan["learning_rate"].items())
    disk, memory = plan["disk_bytes"], best["memory_bytes"]
    traffic, seconds = best["communication_bytes_per_step"], best["step_seconds"]
    shared = plan["sequence_parallel_size"]
    ranks = name_ranks(plan["nodes"] * plan["gpus_per_node"] // shared, shared)
    return [
        f"model      {plan['model']}: {plan['parameters']:,} parameters, vocabulary {plan['vocab_size']:,}, "
        f"{plan['flops_per_token'] / 1e9:.3g} GFLOP/token at T={plan['sequence_length']}",
        f"machine    {plan['nodes']} x {plan['gpus_per_node']} {plan['gpu']}, "
        f"{format_size(plan['gpu_memory_bytes'])} each; host memory {format_size(plan['host_memory_bytes'])} per node",
        f"batch      {format_count(plan['global_batch_tokens'])} tokens: micro-batch "
        f"{best['per_device_train_batch_size']} x accumulation {best['gradient_accumulation_steps']} x "
        f"{ranks} x T={plan['sequence_length']}",
        f"steps      {plan['max_steps']:,} ({plan['warmup_steps']:,} warm-up), {format_count(plan['total_tokens'])} tokens",
        f"lr at step {rates}",
        f"disk       checkpoint {format_size(disk['checkpoint'])}, at most {format_size(disk['checkpoints_kept'])}; "
        f"token store {format_size(disk['store'])}",
        *([f"calibrated {plan['calibration']}"] if plan["calibration"] else []),
        *(f"note       {note}" for note in plan["notes"]),
        "",
        f"choice     {best['recipe']}{_checkpointing_words(best['gradient_checkpointing'])}, "
        f"{best['precision']}{', tiled MLP' if plan['mlp_kernel'] == 'tiled' else ''}",
        *_memory_lines(memory, plan["gpu_memory_bytes"]),
        f"traffic    per GPU and step: {_at(traffic, plan, 'inside_node')} inside the node, "
        f"{_at(traffic, plan, 'between_nodes')} between nodes, {_at(traffic, plan, 'host')} to the host"
        + (
            f", {format_size(traffic['sequences'])} for shared sequences"
            if traffic["sequences"]
            else ""
        ),
        f"step       {_time(seconds['total'])}: compute {_time(seconds['compute'])} "
        f"(assumed MFU {plan['assumed_mfu']:.0%}), waiting for traffic {_time(seconds['exposed'])}, "
        f"host {_time(seconds['host'])}",
        "",
        *_table(plan["choices"]),
        "",
        f"these are {plan['basis']}",
        f"take it    {' '.join(plan['arguments'])}",
    ]


def _time(seconds: float) -> str:
    """Below a second in milliseconds: what is short is not shown as nothing."""
    return f"{seconds * 1000:.3g} ms" if 0 < seconds < 1 else format_seconds(seconds)


def _at(traffic: dict[str, int], plan: dict[str, Any], link: str) -> str:
    """`1.2 GiB (12 GB/s)`: the bytes, and the speed that is assumed for them."""
    speed = f" ({plan['links_bytes_per_second'][link] / 1e9:.3g} GB/s)" if traffic[link] else ""
    return format_size(traffic[link]) + speed


def _checkpointing_words(kind: str) -> str:
    return "" if kind == "none" else f", {kind.replace('_', ' ')} checkpointing"


def _memory_lines(memory: dict[str, int], available: int) -> list[str]:
    parts = [f"{name} {format_size(size)}" for name, size in memory.items() if name != "total"]
    total = f"{format_size(memory['total'])} of {format_size(available)} ({memory['total'] / available:.0%})"
    return [
        f"memory     per GPU: {total}",
        f"           {', '.join(parts[:4])}",
        f"           {', '.join(parts[4:])}",
    ]


def _table(choices: list[dict[str, Any]]) -> list[str]:
    has_cost = choices[0]["cost"] is not None
    head = f"{'recipe':<15}{'micro':>6}{'accum':>7}{'checkpointing':>20}{'memory':>11}{'tok/s':>9}{'MFU':>6}{'hours':>10}"
    rows = [head + (f"{'cost':>13}" if has_cost else "")]
    for row in choices:
        start = (
            f"{row['recipe']:<15}{row['per_device_train_batch_size']:>6}{row['gradient_accumulation_steps']:>7}"
            f"{row['gradient_checkpointing']:>20}{format_size(row['memory_bytes']['total']):>11}"
        )
        if not row["fits"]:
            rows.append(f"{start}  {row['misfit']}")
            continue
        speed = (
            f"{format_count(row['tokens_per_second']):>9}{row['mfu']:>6.0%}{row['hours']:>10,.1f}"
        )
        rows.append(start + speed + (f"{row['cost']:>13,.0f}" if has_cost else ""))
    return rows


def _tokens(job: Job) -> int:
    """Of the whole run; the first batches may be smaller."""
    return job.ramp.sequences_before(job.max_steps) * job.shape.sequence_length
