"""`wikillm plan --calibrate`: measures in under a minute the speeds that plans otherwise assume."""

from __future__ import annotations

import os
import time

import torch

from wikillm.measure.collective import measure_all_reduce
from wikillm.measure.device import device_name, measure_device
from wikillm.plan.calibration import Calibration

SECONDS = 6.0
"""Seconds of measuring. Importing torch in the ranks of the all-reduce takes longer."""


def calibrate(seconds: float = SECONDS) -> Calibration:
    """Measure this machine. Raises MachineError if its processes cannot communicate."""
    measured = measure_device(0.75 * seconds)
    reduced = measure_all_reduce(0.25 * seconds)
    return Calibration(
        device=device_name(),
        kind="cuda" if torch.cuda.is_available() else "cpu",
        cpus=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        torch=torch.__version__,
        all_reduce_bytes_per_second=reduced.bytes_per_second if reduced else None,
        all_reduce=str(reduced or "not measured: one GPU"),
        **measured,
    )
