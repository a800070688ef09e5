"""Parsers on text as nvidia-smi prints it, written by hand after its documentation; no GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wikillm.doctor.facts import GpuCard
from wikillm.doctor.nvidia_smi import count_hardware, parse_cards, parse_head

HEAD = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
"""
CARDS = """\
WARNING: infoROM is corrupted at gpu 0000:3B:00.0
0, NVIDIA H100 80GB HBM3, 81559, 4, Default, 9.0, 0, Disabled
1, NVIDIA H100 80GB HBM3, 81559, 70312, Default, 9.0, 2, Enabled
2, Tesla T4, 15360, 2, [Unknown Error], 7.5, [N/A], [N/A]
"""


def test_head() -> None:
    assert parse_head(HEAD) == ("580.95.05", "13.0")
    assert parse_head("NVIDIA-SMI has failed") == ("", "")


def test_cards() -> None:
    first, second, third = parse_cards(CARDS)
    h100 = GpuCard(0, "NVIDIA H100 80GB HBM3", 81559, 4, 9.0, 0, False, "Default")
    assert first == h100
    assert second == replace(h100, index=1, memory_used=70312, ecc=2, mig=True)
    assert (third.compute_capability, third.ecc, third.mig) == (7.5, None, False)


def test_hardware_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x8086", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert count_hardware(tmp_path) == 1
    assert count_hardware(tmp_path / "absent") == 0
