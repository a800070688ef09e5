"""Parsers on text as nvidia-smi prints it, written by hand after its documentation; no GPU."""

from __future__ import annotations

from pathlib import Path

from wikillm.doctor.nvidia_smi import (
    QUERIES,
    count_hardware,
    parse_cards,
    parse_head,
)

HEAD = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
"""
ANSWERS = (
    "0, NVIDIA H100 80GB HBM3, 81559, 4, Default\n"
    "1, NVIDIA H100 80GB HBM3, 81559, 70312, Default\n",
    "0, 9.0\n1, 9.0\n",
    "0, 0\n1, 2\n",
    "0, Disabled\n1, Enabled\n",
)
OLD = (
    "0, Tesla T4, 15360, 2, [Unknown Error]\n",
    "",  # a driver before 510 does not know compute_cap
    "0, [N/A]\n",
    "0, [N/A]\n",
)


def test_head() -> None:
    assert parse_head(HEAD) == ("580.95.05", "13.0")
    assert parse_head("NVIDIA-SMI has failed") == ("", "")


def test_cards() -> None:
    first, second = parse_cards(dict(zip(QUERIES, ANSWERS, strict=True)))
    assert (first.name, first.memory_total) == ("NVIDIA H100 80GB HBM3", 81559)
    assert (first.ecc, first.mig, first.compute_mode) == (0, False, "Default")
    assert (second.index, second.memory_used, second.compute_capability) == (1, 70312, 9.0)
    assert (second.ecc, second.mig) == (2, True)


def test_an_old_driver_leaves_fields_unknown() -> None:
    (card,) = parse_cards(dict(zip(QUERIES, OLD, strict=True)))
    assert (card.compute_capability, card.ecc, card.mig, card.compute_mode) == (None,) * 4
    assert card.memory_total == 15360


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
