"""Runs with attention limited to documents: ZeRO-3 on two ranks matches one rank.

They differ from runs without the limit. L2: losses with another number of ranks and ZeRO stage
differ only by rounding.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.tiny_run import Words, run

MASKED = (
    "train.document_mask=on",
    "train.sequence_length=128",
    "train.global_batch_tokens=1024",
    "train.max_steps=6",
)


def test_masked_runs_agree_over_ranks_and_stages_and_resume_only_as_they_were(
    words: Words, tmp_path: Path
) -> None:
    one = run(1, words(tmp_path / "one", *MASKED))
    assert one["code"] == 0, one["message"]
    two = run(2, words(tmp_path / "two", *MASKED), deepspeed="zero3")
    assert two["code"] == 0, two["message"]
    assert list(two["losses"].values()) == pytest.approx(list(one["losses"].values()), abs=2e-5)
    assert two["eval"] == pytest.approx(one["eval"], abs=2e-5)
    off = "train.document_mask=off"
    other = run(1, words(tmp_path / "off", *MASKED[1:], off))
    assert (
        max(
            abs(a - b)
            for a, b in zip(other["losses"].values(), one["losses"].values(), strict=True)
        )
        > 1e-4
    )
    refused = run(1, words(tmp_path / "one", *MASKED[1:], off), resume="auto")
    assert refused["code"] == 6 and "document_mask: on then, off now" in refused["message"]
