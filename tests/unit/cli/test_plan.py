"""`wikillm plan` on the command line: what it prints, and that what is wrong is refused."""

from __future__ import annotations

import json

import pytest

from wikillm.cli.main import main


def test_says_that_it_estimates_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "pretrain-7b", "--nodes", "2", "--price", "2.5"]) == 0
    shown = capsys.readouterr().out
    assert "no figure here was measured on a GPU" in shown
    assert "take it    --deepspeed zero" in shown
    assert "cost" in shown and "lr at step 1: 0" in shown


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--tokens", "1B", "--gpus-per-node", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["corpus_tokens"], plan["gpus_per_node"], len(plan["learning_rate"])) == (10**9, 2, 5)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--gpu", "h1000"], "--gpu h100"),
        (["--nodes", "0"], "--nodes is at least 1"),
        (["--mfu", "40"], "--mfu 0.4"),
        (["--tokens", "many"], "--tokens"),
        (["--gpu-memory", "1 potato"], "--gpu-memory"),
        (["--all", "--config", "demo"], "leave"),
        (["--config", "pretrain-72b", "--gpus-per-node", "1"], "does not fit"),
        (["train.learing_rate=1"], "learning_rate"),
    ],
)
def test_refusals(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert hint in capsys.readouterr().err
