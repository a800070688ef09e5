"""Verifying and loading a checkpoint of 60 M parameters: read twice, and kept in between.

python benchmarks/checkpoint_reads.py
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# The repository instead of this folder, as in kernels.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from wikillm.checkpoints.tensor_digests import RANKS, digests_to_json, rank_file, verify_tensors
from wikillm.checkpoints.tensor_files import create_files, open_tensors, write_part
from wikillm.checkpoints.tensor_layout import TensorSpec, lay_out
from wikillm.checkpoints.verified_bytes import VerifiedBytes

KINDS = ("weight", "exp_avg", "exp_avg_sq")
SPECS = [TensorSpec(kind, f"matrix{n}", (1000, 1000)) for kind in KINDS for n in range(60)]
LIMITS = {"twice": 0, "once": 1 << 33}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sizes = _write(Path(folder))
        for way in (*LIMITS, *LIMITS, *LIMITS):
            _read(Path(folder), sizes, way)


def _write(folder: Path) -> dict[str, int]:
    """The tensor files of one rank; their sizes."""
    layout = lay_out(SPECS)
    digests = create_files(folder, layout)
    values = np.random.default_rng(0).standard_normal(1_000_000, np.float32)
    for spec in SPECS:
        extent = layout.extent(spec, 0, spec.numel)
        digests |= write_part(folder, layout, [extent], memoryview(values).cast("B"))
    (folder / RANKS).mkdir()
    record = {"digests": digests_to_json([file.name for file in layout.files], digests)}
    (folder / rank_file(0)).write_text(json.dumps(record))
    return {file.name: file.size for file in layout.files}


def _read(folder: Path, sizes: dict[str, int], way: str) -> None:
    kept = VerifiedBytes(LIMITS[way])
    before = _bytes_read()
    start = time.process_time()
    wrong = verify_tensors(folder, sizes, kept=kept)
    verified = time.process_time()
    with open_tensors(folder, kept) as reader:
        for spec in SPECS:
            reader.read(spec, 0, spec.numel)
    end = time.process_time()
    assert not wrong, wrong
    times = (_bytes_read() - before) / sum(sizes.values())
    print(
        f"{way:6} CPU s: verify {verified - start:.2f}, load {end - verified:.2f}; "
        f"{times:.2f} times the size was read"
    )


def _bytes_read() -> int:
    """By this process so far, from the page cache too."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


if __name__ == "__main__":
    main()
