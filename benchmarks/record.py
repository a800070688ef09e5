"""What every measurement records: date, machine, versions, commit, command, load."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


def circumstances() -> dict[str, Any]:
    """Where and when this process measures; "+changes" when tracked files differ."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "device": gpu
        or f"{_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str:
    """Of this checkout, "" without git; "+changes" when tracked files differ."""
    changed = _git("status", "--porcelain", "-uno", "--", "wikillm", "benchmarks")
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def import_path() -> str:
    """PYTHONPATH for a benchmark's processes: this checkout before what the caller has set."""
    return os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))


def interleaved(
    steps: dict[str, Callable[[], Any]], repeats: int, sync: Callable[[], None]
) -> dict[str, Any]:
    """Time the steps in turns, in alternating order, so that other load slows all of them.

    Returns {name: {"wall": [s], "cpu": [s]}}. CPU seconds are those of all threads of this process;
    they hardly depend on other load, so on a shared machine their ratio is the better one.
    """
    found: dict[str, Any] = {name: {"wall": [], "cpu": []} for name in steps}
    for turn in range(repeats):
        for name in list(steps) if turn % 2 == 0 else reversed(list(steps)):
            sync()
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            sync()
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["cpu"].append(time.process_time() - cpu)
    return found


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median and range of slow/fast, turn by turn."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def run_in_fresh_process(words: list[str]) -> dict[str, Any]:
    """The JSON on the last line of `python <this script> words`, for memory peaks."""
    done = subprocess.run(
        [sys.executable, sys.argv[0], *words],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": import_path()},
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def peak_bytes(device: str) -> int:
    """Most memory so far: what torch allocated on a GPU, else this process's resident set."""
    import resource

    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_flops(size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of this device's matrix product, the best of `repeats`: float32 on CPU, else bf16."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = size or (8192 if on_gpu else 2048)
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def write_partial(
    facts: dict[str, Any], shape: str, out: Path | None, found: dict[str, Any]
) -> None:
    """A benchmark that is stopped later has written what it has."""
    facts["shapes"][shape] = found
    if out is not None:
        out.write_text(json.dumps({"is_partial": True, **facts}) + "\n", encoding="utf-8")


def plot_bars(groups: dict[str, dict[str, float]], unit: str, out: Path) -> None:
    """Horizontal bars, a panel per group, as SVG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    height = sum(0.5 + 0.35 * len(bars) for bars in groups.values())
    figure = Figure(figsize=(8, max(1.5, height)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for panel, (title, bars) in zip(panels, groups.items(), strict=True):
        drawn = panel.barh(list(bars), list(bars.values()), color="#3b6ea5")
        panel.bar_label(drawn, fmt="{:,.0f}", padding=3)
        panel.set_title(f"{title}: {unit}", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.12)
        panel.invert_yaxis()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(f"plot in {out}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(
    title: str,
    facts: dict[str, Any],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    out: Path | None,
    *,
    plot: Path | None = None,
    tokens_per_second: dict[str, dict[str, float]] | None = None,
) -> None:
    """Print the table; write everything as JSON to `out`, {panel: {bar: tokens/s}} to `plot`."""
    print(f"{title}\n")
    for key, value in facts["circumstances"].items():
        print(f"{key:14}{value}")
    print("\n" + table(header, rows))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"title": title, **facts}, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten to {out}")
    if plot is not None:
        plot_bars(tokens_per_second or {}, "tokens/s", plot)


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=REPO)
    except OSError:
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
