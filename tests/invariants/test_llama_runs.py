"""A Llama trains like Qwen2: equal losses on one and two ranks (L2), and its export loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.tiny_run import run

from wikillm.export.folder import export_model
from wikillm.export.run_records import read_card_content


def test_losses_are_equal_and_plain_transformers_opens_the_export(
    words: Any, tmp_path: Path, warm_proofs: None
) -> None:
    llama = ("model.architecture=llama", "train.document_mask=on")
    switches = ("train.mlp_kernel=tiled", "train.gradient_checkpointing=selective")
    one = run(1, words(tmp_path / "one", *llama, "train.loss_kernel=stock"))
    two = run(2, words(tmp_path / "two", *llama, *switches), deepspeed="zero3")
    assert one["code"] == two["code"] == 0, two["message"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two["grad_norms"] == pytest.approx(one["grad_norms"], rel=5e-3)
    checkpoint = max((tmp_path / "two" / "checkpoints").glob("checkpoint-*"))
    done = export_model(
        checkpoint,
        tmp_path / "model",
        tokenizer_dir=tmp_path / "two" / "tokenizer",
        content=read_card_content(checkpoint),
    )
    assert done.architecture == "LlamaForCausalLM"
    assert done.proof is not None and done.proof.texts > 300
