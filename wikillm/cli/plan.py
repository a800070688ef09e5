"""`wikillm plan`: memory, time, cost and the recipe for any GPUs, without data and torch."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wikillm.cli.arguments import (
    above_0,
    add_json,
    count,
    gpus,
    memory,
    nodes,
    not_negative,
    share,
    tflops,
)
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.config.load import load
from wikillm.config.presets import load_preset, preset_names
from wikillm.config.resolved import Resolved
from wikillm.config.size_laws import DEEPEST
from wikillm.core.errors import ConfigError
from wikillm.core.units import format_count, format_size
from wikillm.plan.calibration import (
    CPU,
    apply_calibration,
    cpu_as_device,
    read_calibration,
    write_calibration,
)
from wikillm.plan.check_recipe import check_recipe
from wikillm.plan.choose import Machine, choose
from wikillm.plan.gpus import (
    describe_gpu,
    find_gpu,
    planned_precision,
    with_memory,
)
from wikillm.plan.outcome import FILE_NAME, find_outcomes, table
from wikillm.plan.report import ESTIMATE, lines, to_json
from wikillm.plan.workload import describe_workload

ALL_SIZES = (1, 8, 64, 512)
HOST_MEMORY_PER_GPU = 128 * 2**30
MAX_GPUS_PER_NODE = 16
"""Largest N of `--gpu NxNAME`; more are usually a cluster. `--gpus N` takes any number."""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    add_machine = parser.add_argument_group("the machine").add_argument
    help = (
        "GPU: h100 (default), a100, 8x4090, ...; cpu for this machine's CPU; any other name with "
        "--gpu-memory and --tflops"
    )
    add_machine("--gpu", default="h100", metavar="NAME", help=help)
    help = "usable memory of a GPU, such as 79GiB. Default: by kind"
    add_machine("--gpu-memory", type=memory, metavar="SIZE", help=help)
    help = "dense bf16 peak of a GPU, from its data sheet. Default: by kind"
    add_machine("--tflops", type=tflops, metavar="N", help=help)
    add_machine("--nodes", type=nodes, default=1, help="number of nodes (default 1)")
    help = "GPUs in a node (default 8)"
    add_machine(
        "--gpus", "--gpus-per-node", dest="gpus_per_node", type=gpus, metavar="N", help=help
    )
    help = "host memory of a node, for offload. Default: 128GiB per GPU"
    add_machine("--host-memory", type=memory, metavar="SIZE", help=help)
    help = "GB/s that a node writes to and reads from its storage (default 2)"
    add_machine("--storage", type=above_0, default=2.0, metavar="N", help=help)
    help = "assumed MFU, 0 to 1. Default: 0.2 to 0.55 by model size, from a roofline of the GPU"
    add_machine("--mfu", type=share, help=help)
    add_machine("--price", type=not_negative, help="price per GPU-hour, in any currency")
    add = parser.add_argument
    add("--tokens", type=count, metavar="N", help="training tokens in the corpus, such as 1.2B")
    help = (
        "propose the model size, or for a given model (--size, --config, model.preset) the tokens, "
        "that fit into N hours"
    )
    add("--hours", type=above_0, metavar="N", help=help)
    add("--all", action="store_true", help="plan every model preset on 1, 8, 64 and 512 GPUs")
    add_json(parser)
    help = "measure this machine (under a minute) and store the result"
    add("--calibrate", action="store_true", help=help)
    help = "compare prediction and measurement of finished runs, or all in a folder (default runs/)"
    add("--report", nargs="*", type=Path, metavar="RUN", help=help)


def run(args: argparse.Namespace) -> int:
    _read_gpu_flags(args)
    if args.calibrate:
        return _calibrate(args)
    if args.report is not None:
        return _report(args)
    if args.all:
        return _run_all(args)
    machine = _machine(args, args.nodes, args.gpus_per_node)
    given = [*(["--config", args.config] if args.config else []), *args.rest]
    if args.hours is None:
        plan = plan_run(resolve_run_config(args), machine, args)
    else:
        words, plan = _within_hours(args, machine)
        plan["arguments"] = [*words, *plan["arguments"]]
    plan["command"] = shlex.join([*_launcher(machine), *given, *plan["arguments"]])
    print(json.dumps(plan, indent=2) if args.json else "\n".join(lines(plan)))
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    """Measure this machine. Only this part of the command imports torch."""
    from wikillm.measure.calibrate import calibrate

    made = calibrate()
    path = write_calibration(made)
    if args.json:
        print(json.dumps({"file": str(path), **asdict(made)}, indent=2))
        return 0
    print(made.describe())
    if made.load > 0.5 * made.cpus:
        print(
            f"warning: the load was {made.load:g} on {made.cpus} cores; repeat on an idle machine"
        )
    use = "this CPU: --gpu cpu" if made.kind == "cpu" else "GPUs of this kind"
    print(f"wrote {path}; `wikillm plan` uses it for {use}")
    return 0


def _report(args: argparse.Namespace) -> int:
    places = args.report or [Path("runs")]
    outcomes, broken = find_outcomes(places)
    for file in broken:
        print(f"warning: {file} cannot be read", file=sys.stderr)
    if not outcomes:
        raise ConfigError(
            "There is no finished run with a prediction.",
            got=f"looked for {FILE_NAME} in {', '.join(map(str, places))}, and one level below",
            fix=f"wikillm plan --report RUN; a run writes {FILE_NAME} when it reaches its horizon",
        )
    print(json.dumps(outcomes, indent=2) if args.json else "\n".join(table(outcomes)))
    return 0


def plan_run(resolved: Resolved, machine: Machine, args: argparse.Namespace) -> dict[str, Any]:
    """One plan as JSON. Raises ConfigError when the batch does not divide or nothing fits."""
    workload = describe_workload(resolved, ranks=machine.ranks, train_tokens=args.tokens)
    check_recipe(
        resolved,
        ranks=machine.ranks,
        ranks_per_node=machine.gpus_per_node,
        precision=planned_precision(resolved.config.train, resolved.origins, machine.gpu),
        has_gpu=machine.gpu.device == "cuda",
    )
    return to_json(
        resolved.config.train,
        workload,
        machine,
        choose(resolved, workload, machine),
        calibration=_calibration_used(machine),
        window_shards=resolved.config.data.window_shards,
    )


def _launcher(machine: Machine) -> list[str]:
    """The words that start a run on this machine, before the run's own arguments."""
    if machine.nodes > 1:
        return ["wikillm", "launch", "hostfile", "--hostfile", "hosts", "--go"]
    if machine.ranks == 1:
        return ["wikillm", "train"]
    is_checkout = Path("train.py").is_file()
    return ["deepspeed", "train.py"] if is_checkout else ["wikillm", "launch", "multi", "--go"]


def _within_hours(args: argparse.Namespace, machine: Machine) -> tuple[list[str], dict[str, Any]]:
    """(settings to add to the run, its plan) for `args.hours` on this machine.

    If the run sets its model, the horizon becomes the tokens that fit into the hours. Otherwise
    `model.depth` becomes the deepest model whose horizon by the laws fits.

    Raises ConfigError when not even one layer or a few steps fit, or the run's horizon is set in
    another unit.
    """

    def planned(words: list[str]) -> dict[str, Any] | None:
        try:
            return plan_run(resolve_run_config(args, words), machine, args)
        except ConfigError:
            return None

    resolved = resolve_run_config(args)
    model = resolved.config.model
    is_set = args.config in preset_names("runs") or any(
        resolved.origins[f"model.{key}"].is_user
        for key in ("preset", "init_from", "hidden_size", "num_hidden_layers")
    )
    if model.depth is not None or model.size is not None or is_set:
        return _tokens_within_hours(args, machine, resolved)
    # Hours grow with depth: bisect between a depth that fits and a depth that does not.
    fits = 0
    too_deep = DEEPEST + 1
    best: dict[str, Any] | None = None
    while too_deep - fits > 1:
        depth = (fits + too_deep) // 2
        plan_of_depth = planned([f"model.depth={depth}"])
        if plan_of_depth is not None and plan_of_depth["choices"][0]["hours"] <= args.hours:
            fits = depth
            best = plan_of_depth
        else:
            too_deep = depth
    if best is None:
        smallest = plan_run(resolve_run_config(args, ["model.depth=1"]), machine, args)
        raise ConfigError(
            "No model fits into these hours with a horizon by the laws.",
            got=f"--hours {args.hours:g}; one layer needs {smallest['choices'][0]['hours']:.2g}",
            fix="more hours or GPUs, or a given size: --size 20m",
        )
    return [f"model.depth={fits}"], best


def _tokens_within_hours(
    args: argparse.Namespace, machine: Machine, resolved: Resolved
) -> tuple[list[str], dict[str, Any]]:
    """(the horizon of this model within `args.hours`, as settings, and its plan)."""
    tokens_set = resolved.config.train.max_tokens
    if tokens_set is not None and resolved.origins["train.max_tokens"].is_user:
        raise ConfigError(
            "--hours sets the horizon, which train.max_tokens sets already.",
            got=f"train.max_tokens={tokens_set}",
            fix="leave out one of them",
        )
    plan = plan_run(resolved, machine, args)
    # The batch follows the tokens and changes the speed, so tokens are corrected a few times.
    for _ in range(4):
        steps = int(plan["max_steps"] * args.hours / plan["choices"][0]["hours"])
        tokens = max(1, steps) * plan["global_batch_tokens"]
        last_digit = 10 ** max(0, len(str(tokens)) - 3)  # three digits, rounded down
        words = [f"train.max_tokens={tokens // last_digit * last_digit}"]
        plan = plan_run(resolve_run_config(args, words), machine, args)
        if plan["choices"][0]["hours"] <= args.hours:
            return words, plan
    step = plan["choices"][0]["step_seconds"]["total"]
    raise ConfigError(
        "These hours are too few steps for a horizon.",
        got=f"--hours {args.hours:g}; one step takes {step:.3g} s",
        fix="more hours or GPUs, or a smaller model",
    )


def _calibration_used(machine: Machine) -> str | None:
    is_used = machine.gpu.device == "cpu" or machine.gpu.ceiling is not None
    known = read_calibration() if is_used else None
    return known.describe() if known else None


def _run_all(args: argparse.Namespace) -> int:
    if args.config or args.rest or args.deepspeed or args.hours:
        hours = f"--hours {args.hours:g}" if args.hours else None
        got = " ".join([*args.rest, *filter(None, (args.config, args.deepspeed, hours))])
        fix = "leave the run's arguments out, or leave --all out"
        raise ConfigError("--all plans the presets as they are.", got=got, fix=fix)
    names = preset_names("models")
    by_size = sorted(names, key=lambda name: load_preset("models", name).parameters or 0)
    rows: list[dict[str, Any]] = []
    # Each model is planned with its run preset, or else with the default run.
    for name in by_size:
        run_name = f"pretrain-{name}"
        known = run_name in preset_names("runs")
        resolved = load(run_name, []) if known else load(None, [f"model.preset={name}"])
        for size in ALL_SIZES:
            machine = _machine(args, -(-size // args.gpus_per_node), min(size, args.gpus_per_node))
            row: dict[str, Any] = {"model": name, "gpus": machine.ranks, "gpu": machine.gpu.name}
            try:
                rows.append(row | {"plan": plan_run(resolved, machine, args), "refused": None})
            except ConfigError as error:
                refused = {"what": error.what, "got": error.got, "fix": error.fix}
                rows.append(row | {"plan": None, "refused": refused})
    if args.json:
        print(json.dumps({"basis": ESTIMATE, "plans": rows}, indent=2))
    else:
        print("\n".join(_all_lines(rows)))
    return 0


def _all_lines(rows: list[dict[str, Any]]) -> list[str]:
    rows_shown = [
        f"{'model':<11}{'GPUs':>6}  {'recipe':<15}{'micro':>6}{'accum':>7}{'checkpointing':>20}"
        f"{'memory':>11}{'tok/s':>9}{'hours':>11}"
    ]
    for row in rows:
        start = f"{row['model']:<11}{row['gpus']:>6}  "
        if row["plan"] is None:
            refused = row["refused"]
            rows_shown.append(
                f"{start}refused: {refused['what']} {(refused['fix'] or '').splitlines()[0]}"
            )
            continue
        best = row["plan"]["choices"][0]
        rows_shown.append(
            f"{start}{best['recipe']:<15}{best['per_device_train_batch_size']:>6}"
            f"{best['gradient_accumulation_steps']:>7}{best['gradient_checkpointing']:>20}"
            f"{format_size(best['memory_bytes']['total']):>11}"
            f"{format_count(best['tokens_per_second']):>9}{best['hours']:>11,.1f}"
        )
    return [*rows_shown, "", f"these are {ESTIMATE}"]


def _machine(args: argparse.Namespace, nodes: int, gpus_per_node: int) -> Machine:
    if args.gpu.lower() == CPU:
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gpu = with_memory(cpu_as_device(read_calibration(), gpus_per_node, here), args.gpu_memory)
    else:
        if args.tflops is None:
            found = with_memory(find_gpu(args.gpu), args.gpu_memory)
        else:
            found = describe_gpu(args.gpu, args.gpu_memory, args.tflops)
        gpu = apply_calibration(found, read_calibration())
    host = args.host_memory or HOST_MEMORY_PER_GPU * gpus_per_node
    return Machine(gpu, nodes, gpus_per_node, host, args.mfu, args.price, args.storage * 1e9)


def _read_gpu_flags(args: argparse.Namespace) -> None:
    """Split `--gpu 8x4090` into name and number, and fill in the default number of GPUs."""
    if found := re.fullmatch(r"([0-9]+)\s*[x*×]\s*(\S.*)", args.gpu):  # eight in a node: 8x4090
        number = int(found[1])
        if not 1 <= number <= MAX_GPUS_PER_NODE or args.gpus_per_node not in (None, number):
            got = f"--gpu {args.gpu}"
            got += f" --gpus {args.gpus_per_node}" if args.gpus_per_node else ""
            name = shlex.quote(found[2])
            fix = f"--gpu 8x4090 for eight in a node, or --gpus N --gpu {name}"
            if number > MAX_GPUS_PER_NODE and number % 8 == 0:
                fix = f"--nodes {number // 8} --gpus 8 --gpu {name}"
            what = f"--gpu NxNAME takes the GPUs of one node, 1 to {MAX_GPUS_PER_NODE}."
            raise ConfigError(what, got=got, fix=fix)
        args.gpus_per_node = number
        args.gpu = found[2]
    args.gpus_per_node = args.gpus_per_node or 8
    if args.tflops is not None and args.gpu.lower() == "cpu":
        what = "--tflops describes a GPU; a CPU's speed is measured."
        raise ConfigError(what, got="--gpu cpu", fix="wikillm plan --calibrate")
    if not args.gpu.strip() or not args.gpu.isprintable():
        raise ConfigError("--gpu must be a name.", got=repr(args.gpu), fix="--gpu h100")
