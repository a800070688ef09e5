"""ZeRO partitions of two ranks export to the same weights that one rank would have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness.partitions import save_partitions
from harness.ranks import run_ranks
from harness.tiny_model import seal, write_tokenizer
from transformers import AutoModelForCausalLM

from wikillm.cli.main import main
from wikillm.core.errors import CheckpointError
from wikillm.export.card import CardContent
from wikillm.export.folder import export_model


@pytest.mark.parametrize(("stage", "tied"), [(2, True), (3, False)])
def test_export_of_partitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: int, tied: bool
) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    run_ranks(save_partitions, 2, str(checkpoint), stage, tied, str(tmp_path / "whole.pt"))
    assert not (checkpoint / "model.safetensors").exists()
    seal(checkpoint, 1)
    tokenizer = write_tokenizer(run / "tokenizer", ["一二三"] * 5)
    done = export_model(
        checkpoint, tmp_path / "m", tokenizer_dir=tokenizer, content=CardContent("x"), prove=False
    )
    exported = AutoModelForCausalLM.from_pretrained(done.folder).state_dict()
    meant = torch.load(tmp_path / "whole.pt")
    assert len(meant) > 10
    assert all(torch.equal(exported[name], value) for name, value in meant.items())

    (run / "config.resolved.yaml").write_text("run: {name: x}\n")
    words = ["--prompt", "一", "--max-new-tokens", "4", "--json"]
    assert main(["generate", str(run), *words]) == main(["generate", str(done.folder), *words]) == 0
    from_partitions, from_export = capsys.readouterr().out.splitlines()
    assert from_partitions == from_export

    shard = next((checkpoint / "global_step1").glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        export_model(checkpoint, tmp_path / "m", tokenizer_dir=tokenizer, content=CardContent("x"))
