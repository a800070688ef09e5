"""Reads and writes the measured speeds of a machine: one JSON file per user, with device and date.

`wikillm plan --calibrate` measures (see `wikillm.measure`) and writes the file. The planner reads
it for `--gpu cpu`, and for a GPU of the same name. A damaged file, or one of another version, is
ignored with a warning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_json
from wikillm.core.log import warn
from wikillm.plan.gpus import Gpu, peak_flops

VERSION = 1
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Calibration:
    """FLOP/s and bytes/s of one GPU, or of all CPU cores together. `load`: prior load average."""

    device: str
    kind: Literal["cpu", "cuda"]
    cpus: int
    load: float
    time: str
    torch: str
    gemm_flops: float
    attention_flops: float
    copy_bytes_per_second: float
    all_reduce_bytes_per_second: float | None
    all_reduce: str

    def describe(self) -> str:
        """One line of text for a plan."""
        reduce = "not measured"
        if (rate := self.all_reduce_bytes_per_second) is not None:
            reduce = f"{rate / 1e9:.3g} GB/s ({self.all_reduce})"
        return (
            f"measured {self.time[:10]} on {self.device}: "
            f"products {self.gemm_flops / 1e12:.3g} TFLOP/s, "
            f"attention {self.attention_flops / 1e12:.3g} TFLOP/s, "
            f"copies {self.copy_bytes_per_second / 1e9:.3g} GB/s, all-reduce {reduce}"
        )


def calibration_file(environ: Mapping[str, str] = os.environ) -> Path:
    cache = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "wikillm" / "calibration.json"


def write_calibration(calibration: Calibration) -> Path:
    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"version": VERSION, **asdict(calibration)})
    return path


def read_calibration() -> Calibration | None:
    """The user's calibration; None if nothing was measured yet or the file cannot be used."""
    path = calibration_file()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Calibration)}
        if raw.pop("version") != VERSION or set(raw) != names:
            raise ValueError("another version")
        made = Calibration(**raw)
        if min(made.gemm_flops, made.attention_flops, made.copy_bytes_per_second) <= 0:
            raise ValueError("a speed that is not positive")
        return made
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        warn(f"{path} cannot be used ({error}); measure again: wikillm plan --calibrate")
        return None


def cpu_as_device(calibration: Calibration | None, ranks: int, memory: int) -> Gpu:
    """A rank's share of this machine's CPU. Raises ConfigError if it was not measured."""
    if calibration is None or calibration.kind != "cpu":
        raise ConfigError(
            "The speed of this machine's CPU is not known yet.", fix="wikillm plan --calibrate"
        )
    reduce = calibration.all_reduce_bytes_per_second or calibration.copy_bytes_per_second
    return Gpu(
        CPU,
        CPU,
        peak=calibration.gemm_flops / ranks,
        memory=memory // ranks,
        inside_node=reduce,
        between_nodes=reduce,
        host_link=calibration.copy_bytes_per_second / ranks,
        has_bf16=False,
        device="cpu",
    )


def apply_calibration(gpu: Gpu, calibration: Calibration | None) -> Gpu:
    """The GPU with the measured all-reduce and products, if a GPU of that kind was measured."""
    if calibration is None or calibration.kind != "cuda":
        return gpu
    if peak_flops(calibration.device) != peak_flops(gpu.driver_name):
        return gpu
    reduce = calibration.all_reduce_bytes_per_second
    return replace(gpu, ceiling=calibration.gemm_flops, inside_node=reduce or gpu.inside_node)
