"""Which machine this is, and what its products, copies and attention reach: JSON for gpu.py.

python benchmarks/gpu_machine.py --out machine.json
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

import torch

from benchmarks.record import circumstances, gemm_flops
from wikillm.measure.device import measure_device
from wikillm.plan.gpus import peak_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a third of a second, for a rehearsal")
    parser.add_argument("--out", type=Path, required=True, help="where to write the JSON")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else ""
    facts: dict[str, Any] = {"circumstances": circumstances()}
    for package in ("deepspeed", "triton", "liger_kernel", "accelerate"):
        facts.setdefault("packages", {})[package] = _version(package)
    if on_gpu:
        facts["memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
        facts["compute_capability"] = torch.cuda.get_device_capability()
        facts["cuda"] = torch.version.cuda
        query = "driver_version,power.limit,clocks.max.sm,pcie.link.gen.max"
        facts["driver"] = _nvidia_smi(query)
    facts["peak_flops"] = peak_flops(name)
    facts |= measure_device(0.3 if args.quick else 6.0)
    # A larger product than the planner's, to be sure of the ceiling.
    facts["gemm_16384_flops"] = gemm_flops(16384) if on_gpu else None
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    ceiling = facts["gemm_flops"] / 1e12
    print(f"products {ceiling:.1f} TFLOP/s, copies {facts['copy_bytes_per_second'] / 1e9:.0f} GB/s")


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return None


def _nvidia_smi(query: str) -> str:
    words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=15).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


if __name__ == "__main__":
    main()
