"""The summary of benchmarks/gpu.py and its page for docs/measurements, from the steps' JSON."""

from __future__ import annotations

import re
import statistics
from typing import Any

from benchmarks.gpu_steps import Shape
from benchmarks.record import table
from wikillm.plan.communication import Communication
from wikillm.plan.gpus import gpu_by_driver_name
from wikillm.plan.memory import memory_per_rank
from wikillm.plan.roofline import default_mfu
from wikillm.plan.time import step_time

Results = dict[str, dict[str, Any]]


def summary(found: Results) -> str:
    """A line per step, then predicted beside measured."""
    rows = [
        [name, one["status"], f"{one.get('seconds', 0):.0f}", one.get("reason", "")[:90]]
        for name, one in found.items()
    ]
    return table(["step", "status", "s", "reason"], rows) + "\n\n" + planned_table(found)


def page(found: Results) -> str:
    """The measurement as Markdown: every figure is of the JSON that the steps wrote."""
    first = next(iter(found.values()), {})
    parts = [
        f"# Measured on {first.get('device', 'nothing')}",
        f"{first.get('date', '')[:10]}, commit `{first.get('commit') or 'unknown'}`, sources "
        f"`{first.get('sources', '')}`. Written by `make gpu ARGS=--write`; commands below.",
    ]
    others = {one["sources"] for one in found.values()} - {first.get("sources")}
    if others:
        parts.append(f"Some steps are of other sources: {', '.join(sorted(others))}.")
    sections = [
        ("Machine", _machine(found)),
        ("The mission's command", _missions(found)),
        ("Training steps", _training(found)),
        ("Planned and measured", planned_table(found)),
        ("Between the step and the ceiling of products", _gap(found)),
        ("Projection and loss alone", _losses(found)),
        ("Tests", _tests(found)),
        ("Steps", _steps(found)),
    ]
    parts += [f"## {title}\n\n{text}" for title, text in sections if text]
    return "\n\n".join(parts) + "\n"


def planned_table(found: Results) -> str:
    """Allocated memory and speed by the plan and as measured; errors as `wikillm plan --report`."""
    rows = []
    for name, one in found.items():
        for case, memory, speed in _pairs(one):
            cells = [_gib(memory[0]), _gib(memory[1]), _error(memory)]
            cells += [_count(speed[0]), _count(speed[1]), _error(speed)]
            rows.append([f"{name}: {case}", *cells])
    header = ["case", "planned GiB", "measured", "error", "planned tokens/s", "measured", "error"]
    return table(header, rows) if rows else "Nothing that the planner predicts was measured."


Pair = tuple[float | None, float | None]


def _pairs(one: dict[str, Any]) -> list[tuple[str, Pair, Pair]]:
    """(case, planned and measured bytes, planned and measured tokens/s) of a step."""
    result = one.get("result") or {}
    if outcome := result.get("outcome"):
        planned, measured = outcome["predicted"], outcome["measured"]
        pair = [(planned[key], measured[key]) for key in ("memory_bytes", "tokens_per_second")]
        return [(outcome["setup"]["engine"], pair[0], pair[1])]
    rows = []
    gpu = gpu_by_driver_name(one.get("device", ""))
    for shape, contenders in _shapes(result):
        for name in ("hf", "wikillm"):
            if "wall" not in contenders.get(name, {}):
                continue
            workload, strategy = shape.planned("stock" if name == "hf" else "chunked")
            speed = None
            tokens = shape.batch * shape.length
            if gpu is not None:
                mfu = default_mfu(workload, strategy, gpu)
                time = step_time(workload, strategy, Communication(0, 0, 0), gpu, mfu=mfu)
                speed = tokens / time.total
            memory = memory_per_rank(workload, strategy).allocated
            measured = contenders[name]
            reached = tokens / statistics.median(measured["wall"])
            rows.append((name, (memory, measured["peak"]), (speed, reached)))
    return rows


def _shapes(result: dict[str, Any]) -> list[tuple[Shape, dict[str, Any]]]:
    """The presets' shapes of a training step's result."""
    found = []
    for name, contenders in result.get("shapes", {}).items():
        if match := re.fullmatch(r"(\S+), (\d+) x (\d+)", name):
            preset, batch, length = match.groups()
            kind: Any = "full" if preset == "3b" else "none"
            found.append((Shape(preset, int(length), int(batch), kind), contenders))
    return found


def _machine(found: Results) -> str:
    facts = found.get("machine", {}).get("result")
    if not facts:
        return ""
    machine = facts["circumstances"]
    versions = {"torch": machine["torch"], "transformers": machine["transformers"]}
    versions |= facts.get("packages", {})
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    peak = facts.get("peak_flops")
    share = f" ({facts['gemm_flops'] / peak:.0%} of the data sheet)" if peak else ""
    rows = [
        ["products", f"{facts['gemm_flops'] / 1e12:,.1f} TFLOP/s{share}"],
        ["attention, causal, counted in full", f"{facts['attention_flops'] / 1e12:,.1f} TFLOP/s"],
        ["copies, read and written", f"{facts['copy_bytes_per_second'] / 1e9:,.0f} GB/s"],
    ]
    driver = facts.get("driver", "").splitlines()
    rows += [["driver", driver[-1]]] if driver else []
    return f"Python {machine['python']}, {said}.\n\n" + table(["what", "measured"], rows)


def _missions(found: Results) -> str:
    rows = []
    for name, one in found.items():
        if not (outcome := (one.get("result") or {}).get("outcome")):
            continue
        losses = [line["loss"] for line in one["result"]["metrics"] if "loss" in line]
        setup, measured = outcome["setup"], outcome["measured"]
        size = f"{setup['per_device_train_batch_size']} x {setup['sequence_length']}"
        size += f" x {setup['gradient_accumulation_steps']}"
        fell = f"{losses[0]:.2f} to {losses[-1]:.2f}" if losses else ""
        peak = f"{measured['memory_bytes'] / 2**30:.1f}"
        rows.append(
            [name, setup["engine"], size, _count(measured["tokens_per_second"]), peak, fell]
        )
    header = ["step", "engine", "micro x T x accumulation", "tokens/s", "peak GiB", "loss"]
    return table(header, rows) if rows else ""


def _training(found: Results) -> str:
    rows = []
    for one in found.values():
        result = one.get("result") or {}
        for shape, contenders in result.get("shapes", {}).items():
            if shape in result.get("refused", {}):
                rows.append([shape, "", result["refused"][shape], "", "", "", "", ""])
                continue
            if any("rows" in key or "gradients" in one for key, one in contenders.items()):
                continue  # of losses.py
            rows += _contenders(shape, contenders, result)
    header = ["shape", "contender", "ms/step", "tokens/s", "x stock", "MFU", "of GEMM", "peak GiB"]
    return table(header, rows) if rows else ""


def _contenders(shape: str, contenders: dict[str, Any], result: dict[str, Any]) -> list[list[str]]:
    size = [int(number) for number in re.findall(r"(\d+) x (\d+)$", shape)[0]]
    tokens = size[0] * size[1]
    stock = contenders.get("hf", {}).get("wall")
    rows = []
    for name, one in contenders.items():
        if "wall" not in one:
            reason = "out of memory" if "out of memory" in one["error"].lower() else "failed"
            rows.append([shape, name, reason, *[""] * 5])
            continue
        step = statistics.median(one["wall"])
        ratio = f"{statistics.median(stock) / step:.2f}" if stock else ""
        shares = ["", ""]
        if found := _shapes({"shapes": {shape: {}}}):
            flops = found[0][0].planned()[0].flops_per_token * tokens / step
            rates = (result.get("peak_flops"), result.get("gemm_flops"))
            shares = [f"{flops / rate:.1%}" if rate else "" for rate in rates]
        peak = f"{one['peak'] / 2**30:.1f}"
        rows.append([shape, name, f"{step * 1e3:.1f}", _count(tokens / step), ratio, *shares, peak])
    return rows


def _gap(found: Results) -> str:
    """From the step down to the time of its FLOPs at the measured rate of large products."""
    result = found.get("profile", {}).get("result") or {}
    out = []
    for name, contenders in result.get("shapes", {}).items():
        for contender, one in contenders.items():
            if not one.get("kinds"):
                continue
            step = statistics.median(one["wall"]) * 1e3
            kinds = dict(sorted(one["kinds"].items(), key=lambda item: -item[1]))
            rows = [[kind, f"{ms:.2f}", f"{ms / step:.1%}"] for kind, ms in kinds.items()]
            idle = step - sum(kinds.values())
            rows.append(["nothing on the device", f"{idle:.2f}", f"{idle / step:.1%}"])
            rows.append(["the whole step", f"{step:.2f}", "100.0%"])
            if shapes := _shapes({"shapes": {name: {}}}):
                shape = shapes[0][0]
                work = shape.planned()[0].flops_per_token * shape.batch * shape.length
                ideal = work / result["gemm_flops"] * 1e3
                rows.append(["its FLOPs at the ceiling", f"{ideal:.2f}", f"{ideal / step:.1%}"])
            title = f"{name}, {contender}; products include the head's."
            out.append(f"{title}\n\n" + table(["kind", "ms per step", "share"], rows))
    return "\n\n".join(out)


def _losses(found: Results) -> str:
    result = found.get("losses", {}).get("result") or {}
    rows = []
    for shape, contenders in result.get("shapes", {}).items():
        for name, one in contenders.items():
            if "wall" not in one:
                rows.append([shape, name, one.get("error", "not measured")[:80], "", ""])
                continue
            peak, off = f"{one['peak'] / 2**30:.2f}", f"{max(one['gradients']):.1e}"
            rows.append([shape, name, f"{statistics.median(one['wall']) * 1e3:.2f}", peak, off])
    header = ["rows x h", "loss", "ms", "peak GiB", "gradients off by"]
    return table(header, rows) if rows else ""


def _tests(found: Results) -> str:
    result = found.get("tests", {}).get("result")
    if not result:
        return ""
    counts = ", ".join(
        f"{result[kind]} {kind}" for kind in ("passed", "failed", "error", "skipped")
    )
    return "\n".join([f"{counts}.", *(f"- failed: `{name}`" for name in result["names"])])


def _steps(found: Results) -> str:
    rows = []
    for name, one in found.items():
        command = f"`{one['command']}`" if "command" in one else ""
        said = one["status"] + (f": {one['reason']}" if one.get("reason") else "")
        rows.append([name, said.replace("|", "/"), f"{one.get('seconds', 0):.0f}", command])
    return table(["step", "status", "s", "command"], rows)


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f}"


def _count(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}"


def _error(pair: Pair) -> str:
    planned, measured = pair
    return "" if planned is None or not measured else f"{planned / measured - 1:+.0%}"
