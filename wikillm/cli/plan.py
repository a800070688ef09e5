"""`wikillm plan`: memory, time, cost and the recipe for GPUs that need not be there. Works without data and torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved
    from wikillm.plan.choose import Machine

HELP = "What a run needs on given GPUs: recipe, memory, time, cost. Estimates, without torch."
ALL_SIZES = (1, 8, 64, 512)
HOST_MEMORY_PER_GPU = 128 * 2**30


def configure(parser: argparse.ArgumentParser) -> None:
    from wikillm.cli.run_config import add_run_config_arguments

    add_run_config_arguments(parser)
    group = parser.add_argument_group("the machine")
    group.add_argument(
        "--gpu",
        default="h100",
        metavar="NAME",
        help="kind of GPU: h100 (default), a100, 4090, ...; cpu: this one; any name beside --gpu-memory and --tflops",
    )
    group.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help="usable memory of a GPU, such as 79GiB. Default: by kind",
    )
    group.add_argument(
        "--tflops",
        type=float,
        metavar="N",
        help="dense bf16 peak of a GPU, from its data sheet. Default: by kind",
    )
    group.add_argument("--nodes", type=int, default=1, help="number of nodes (default 1)")
    group.add_argument(
        "--gpus",
        "--gpus-per-node",
        dest="gpus_per_node",
        type=int,
        default=8,
        metavar="N",
        help="GPUs in a node (default 8)",
    )
    group.add_argument(
        "--host-memory",
        metavar="SIZE",
        help="memory of a node for offload. Default: 128GiB per GPU",
    )
    group.add_argument(
        "--mfu", type=float, help="assumed MFU, 0 to 1. Default: 0.25 to 0.40 by size of the model"
    )
    group.add_argument("--price", type=float, help="price of a GPU hour, in your currency")
    parser.add_argument("--tokens", metavar="N", help="training tokens in the corpus, such as 1.2B")
    parser.add_argument(
        "--all", action="store_true", help="every model preset on 1, 8, 64 and 512 GPUs"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--calibrate", action="store_true", help="measure this machine (under a minute) and keep it"
    )
    parser.add_argument(
        "--report",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="predicted against measured of finished runs, or of those below a folder (default runs/)",
    )


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.calibrate:
        return _calibrate(args)
    if args.report is not None:
        return _report(args)
    if args.all:
        return _run_all(args)
    from wikillm.cli.run_config import resolve_run_config
    from wikillm.plan.report import lines

    plan = plan_run(resolve_run_config(args), _machine(args, args.nodes, args.gpus_per_node), args)
    print(json.dumps(plan, indent=2) if args.json else "\n".join(lines(plan)))
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    """The only part of this command that imports torch."""
    from dataclasses import asdict

    from wikillm.measure.calibrate import calibrate
    from wikillm.plan.calibration import write_calibration

    made = calibrate()
    path = write_calibration(made)
    if args.json:
        print(json.dumps({"file": str(path), **asdict(made)}, indent=2))
        return 0
    print(made.describe())
    if made.load > 0.5 * made.cpus:
        print(
            f"warning: the load was {made.load:g} on {made.cpus} cores: a quiet machine is faster"
        )
    print(
        f"wrote {path}; `wikillm plan` uses it for {'this CPU: --gpu cpu' if made.kind == 'cpu' else 'such a GPU'}"
    )
    return 0


def _report(args: argparse.Namespace) -> int:
    from wikillm.core.errors import ConfigError
    from wikillm.plan.outcome import FILE_NAME, find_outcomes, table, to_rows

    places = args.report or [Path("runs")]
    outcomes, broken = find_outcomes(places)
    for file in broken:
        print(f"warning: {file} cannot be read", file=sys.stderr)
    if not outcomes:
        raise ConfigError(
            "There is no finished run with a prediction.",
            got=f"looked for {FILE_NAME} in and one below {', '.join(map(str, places))}",
            fix="wikillm plan --report RUN; a run writes it when it reaches its horizon",
        )
    print(json.dumps(to_rows(outcomes), indent=2) if args.json else "\n".join(table(outcomes)))
    return 0


def plan_run(resolved: Resolved, machine: Machine, args: argparse.Namespace) -> dict[str, Any]:
    """One plan as JSON. Raises ConfigError when the batch does not divide or nothing fits."""
    from wikillm.plan.choose import choose, planned_precision
    from wikillm.plan.recipe import check_recipe
    from wikillm.plan.report import to_json
    from wikillm.plan.workload import describe_workload

    workload = describe_workload(resolved, ranks=machine.ranks, train_tokens=_tokens(args))
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
        choose(resolved, workload, machine, args.mfu),
        mfu=args.mfu,
        price=args.price,
        calibration=_calibration_used(machine),
    )


def _calibration_used(machine: Machine) -> str | None:
    from wikillm.plan.calibration import read_calibration

    known = (
        read_calibration()
        if machine.gpu.device == "cpu" or machine.gpu.ceiling is not None
        else None
    )
    return known.describe() if known else None


def _run_all(args: argparse.Namespace) -> int:
    from wikillm.cli.run_config import resolve_run_config
    from wikillm.config.presets import load_preset, preset_names
    from wikillm.core.errors import ConfigError
    from wikillm.plan.report import ESTIMATE

    if args.config or args.rest or args.deepspeed:
        raise ConfigError(
            "--all plans the presets as they are.",
            got=" ".join([*args.rest, *filter(None, (args.config, args.deepspeed))]),
            fix="leave the run's arguments out, or leave --all out",
        )
    names = sorted(
        preset_names("models"), key=lambda name: load_preset("models", name).parameters or 0
    )
    rows: list[dict[str, Any]] = []
    for name in names:
        run_name = f"pretrain-{name}"
        known = run_name in preset_names("runs")
        args.config, args.rest = (run_name, []) if known else (None, [f"model.preset={name}"])
        resolved = resolve_run_config(args)
        for size in ALL_SIZES:
            machine = _machine(args, -(-size // args.gpus_per_node), min(size, args.gpus_per_node))
            row: dict[str, Any] = {"model": name, "gpus": machine.ranks, "gpu": machine.gpu.name}
            try:
                rows.append(row | {"plan": plan_run(resolved, machine, args), "refused": None})
            except ConfigError as error:
                rows.append(
                    row
                    | {
                        "plan": None,
                        "refused": {"what": error.what, "got": error.got, "fix": error.fix},
                    }
                )
    print(
        json.dumps({"basis": ESTIMATE, "plans": rows}, indent=2)
        if args.json
        else "\n".join(_all_lines(rows))
    )
    return 0


def _all_lines(rows: list[dict[str, Any]]) -> list[str]:
    from wikillm.core.units import format_count, format_size
    from wikillm.plan.report import ESTIMATE

    out = [
        f"{'model':<7}{'GPUs':>6}  {'recipe':<15}{'micro':>6}{'accum':>7}{'checkpointing':>20}{'memory':>11}{'tok/s':>9}{'hours':>11}"
    ]
    for row in rows:
        start = f"{row['model']:<7}{row['gpus']:>6}  "
        if row["plan"] is None:
            out.append(
                f"{start}refused: {row['refused']['what']} {(row['refused']['fix'] or '').splitlines()[0]}"
            )
            continue
        best = row["plan"]["choices"][0]
        out.append(
            f"{start}{best['recipe']:<15}{best['per_device_train_batch_size']:>6}{best['gradient_accumulation_steps']:>7}"
            f"{best['gradient_checkpointing']:>20}{format_size(best['memory_bytes']['total']):>11}"
            f"{format_count(best['tokens_per_second']):>9}{best['hours']:>11,.1f}"
        )
    return [*out, "", f"these are {ESTIMATE}"]


def _machine(args: argparse.Namespace, nodes: int, gpus_per_node: int) -> Machine:
    from wikillm.cli.arguments import memory_argument
    from wikillm.plan.calibration import CPU, apply_calibration, cpu_as_device, read_calibration
    from wikillm.plan.choose import Machine
    from wikillm.plan.gpus import describe_gpu, driver_name, find_gpu, with_memory

    memory = memory_argument(args.gpu_memory, "--gpu-memory")
    if args.gpu.lower() == CPU:
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gpu = with_memory(cpu_as_device(read_calibration(), gpus_per_node, here), memory)
    else:
        known = args.tflops is None
        found = (
            with_memory(find_gpu(args.gpu), memory)
            if known
            else describe_gpu(args.gpu, memory, args.tflops)
        )
        gpu = apply_calibration(found, read_calibration(), driver_name(found.name))
    host = memory_argument(args.host_memory, "--host-memory") or HOST_MEMORY_PER_GPU * gpus_per_node
    return Machine(gpu, nodes, gpus_per_node, host)


def _check(args: argparse.Namespace) -> None:
    from wikillm.core.errors import ConfigError, Problems

    problems = Problems(ConfigError)
    for name, most in (("nodes", 100_000), ("gpus_per_node", 1024)):
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if not 1 <= value <= most:
            problems.add(
                f"{flag} is at {'least 1' if value < 1 else f'most {most}'}.", got=str(value)
            )
    if args.tflops is not None and not 0.1 <= args.tflops <= 100_000:
        problems.add(
            "--tflops is a GPU's dense bf16 peak in TFLOP/s.",
            got=str(args.tflops),
            fix="--tflops 165",
        )
    if args.tflops is not None and args.gpu.lower() == "cpu":
        problems.add(
            "--tflops is for a GPU; a CPU is measured.",
            got="--gpu cpu",
            fix="wikillm plan --calibrate",
        )
    if not args.gpu.strip() or not args.gpu.isprintable():
        problems.add("--gpu is a name.", got=repr(args.gpu), fix="--gpu h100")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        problems.add("--mfu is a share between 0 and 1.", got=str(args.mfu), fix="--mfu 0.4")
    if args.price is not None and not 0 <= args.price < float("inf"):
        problems.add("--price is a price per GPU hour.", got=str(args.price), fix="--price 2.50")
    problems.raise_if_any()


def _tokens(args: argparse.Namespace) -> int | None:
    from wikillm.core.errors import ConfigError
    from wikillm.core.units import parse_count

    try:
        return None if args.tokens is None else parse_count(args.tokens)
    except ValueError as error:
        raise ConfigError(f"--tokens: {error}.") from None
