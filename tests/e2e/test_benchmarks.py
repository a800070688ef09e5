"""The benchmarks run, and the programs they compare have equal losses after equal steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.benchmarks import run_benchmark
from harness.ranks import run_ranks


def benchmark(out: Path, script: str, words: str) -> dict[str, Any]:
    """Run a benchmark. Return the JSON it wrote, with its output under `printed`."""
    (printed,) = run_ranks(run_benchmark, 1, script, [*words.split(), "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8")) | {"printed": printed}


def test_kernels(tmp_path: Path) -> None:
    words = (
        "--hidden 64 --layers 1 --vocab 500 --batch 2 --length 32 --repeats 2 --chunk-rows 16 64"
    )
    found = benchmark(tmp_path / "k.json", "kernels.py", words)
    for variant in ("chunked:16", "chunked:64"):
        assert found[variant]["gradient_distance"] < 1e-5
        assert found[variant]["loss"] == pytest.approx(found["stock"]["loss"], rel=1e-6)
        assert len(found[variant]["wall"]) == 2


def test_layers_and_the_8_bit_head(tmp_path: Path) -> None:
    words = (
        "--hidden 64 --layers 1 --vocab 512 --batch 2 --length 32 --repeats 1 "
        "--kernels tiled recomputed fp8"
    )
    found = benchmark(tmp_path / "k.json", "kernels.py", words)
    for variant, bound in (("tiled", 1e-5), ("recomputed", 1e-5), ("fp8", 0.1)):
        assert found[variant]["gradient_distance"] < bound and found[variant]["peak"] > 0, variant
    assert found["fp8"]["gradient_distance"] > 1e-3, "it multiplies in 8 bit"


def test_losses(tmp_path: Path) -> None:
    """The CPU kernels agree on loss and gradient. The report says why the others did not run."""
    found = benchmark(
        tmp_path / "l.json", "losses.py", "--rows 96 --hidden 32 --vocab 700 --repeats 2"
    )
    (shape,) = found["shapes"].values()
    assert {"stock", "chunked"} <= set(shape) and "triton" not in shape
    for result in shape.values():
        assert result["loss"] == pytest.approx(shape["stock"]["loss"], rel=1e-5)
        assert max(result["gradients"]) < 1e-5 and len(result["wall"]) == 2 and result["peak"] > 0


@pytest.mark.deep
@pytest.mark.parametrize("names", ["hf bare bare-fused wikillm"])
def test_contenders_train_the_same(names: str, tmp_path: Path) -> None:
    """The HF Trainer, plain loops and WikiLLM use the same model, sample order and optimizer."""
    words = "--hidden 64 --layers 1 --vocab 512 --batch 2 --length 32 --steps 4 --warmup 1"
    found = benchmark(tmp_path / "t.json", "train.py", f"{words} --contenders {names}")
    (contenders,) = found["shapes"].values()
    assert set(contenders) == set(names.split())
    truth = contenders["hf"]["losses"]
    assert len(truth) == 5
    for name, result in contenders.items():
        assert result["losses"] == pytest.approx(truth, rel=1e-5), name


def test_building_a_store(tmp_path: Path) -> None:
    """The tutorial drops text, streaming only the ends of batches. Missing peers are named."""
    words = f"--mb 0.5 --contenders tutorial streaming hf fastokens --peers {sys.executable}"
    found = benchmark(tmp_path / "d.json", "data.py", words)
    tokens = {name: one["tokens"] for name, one in found["contenders"].items()}
    assert tokens["hf"] == tokens["fastokens"] and found["text_bytes"] >= 400_000
    assert 0 < tokens["tutorial"] < tokens["hf"]
    assert (
        tokens["hf"] - 512 * -(-found["text_bytes"] // 50_000) < tokens["streaming"] <= tokens["hf"]
    )
    assert all(one["cpu_s"] > 0 and one["peak"] > 0 for one in found["contenders"].values())
    for peer in ("datatrove", "litdata", "MosaicML streaming"):
        assert f"skipped {peer}" in found["printed"] and "benchmarks/peers.txt" in found["printed"]


@pytest.mark.deep
def test_reading_a_store(tmp_path: Path) -> None:
    found = benchmark(tmp_path / "r.json", "data_read.py", "--tokens 20000 --batch 4 --length 128")
    assert set(found["contenders"]) == {"datasets", "wikillm", "best_fit"}
    assert all(one["tokens_per_cpu_s"] > 0 for one in found["contenders"].values())
    assert (
        found["contenders"]["wikillm"]["seek_ms"] > 0
        and "place of a sample beyond 10^9" in found["printed"]
    )


def test_peers_give_every_document_its_eos(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documents given to litdata and MDS match `tokenizers`, also across batches."""
    import importlib.util

    from tokenizers import Tokenizer

    from wikillm.data.tokenizer.train import train_bpe, write_tokenizer

    spec = importlib.util.spec_from_file_location("peers", repo / "benchmarks/peers.py")
    assert spec is not None and spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    texts = [f"document {n}: " + "words and 中文 " * (n % 5) for n in range(40)] + [""]
    write_tokenizer(train_bpe(texts, 300), tmp_path / "tokenizer")
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    truth = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    monkeypatch.setattr(peers, "BATCH_BYTES", 500)
    found = [
        ids.tolist() for ids in peers._documents(tmp_path / "text.jsonl", tmp_path / "tokenizer")
    ]
    eos = truth.token_to_id("<|endoftext|>")
    assert found == [[*truth.encode(text, add_special_tokens=False).ids, eos] for text in texts]
    assert set(peers.PEERS) == {"datatrove", "litdata", "mds"}


@pytest.mark.deep
def test_make_gpu_on_a_cpu(repo: Path, tmp_path: Path) -> None:
    """A machine, a store and `deepspeed train.py` to its horizon; a second call has them all."""
    words = ["benchmarks/gpu.py", "--rehearse", "--out", str(tmp_path), "--budget", "500"]
    words += ["--only", "machine", "store", "mission"]
    environ = os.environ | {"DS_ACCELERATOR": "cpu"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *words], cwd=repo, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kept, measured") == 3
    mission = json.loads((tmp_path / "mission.json").read_text())
    assert mission["status"] == "done" and mission["result"]["outcome"]["measured"]["memory_bytes"]
    page = (tmp_path / "summary.md").read_text()
    assert "mission: ZeRO-2" in page and "`python -m deepspeed.launcher.runner" in page
