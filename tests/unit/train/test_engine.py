"""What is refused before the data is opened."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from wikillm.config.load import load
from wikillm.config.precision import resolve_precision
from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.world import World
from wikillm.plan.run_plan import make_plan
from wikillm.train.engine import (
    check_attention_package,
    check_engine,
    precision_here,
    resolve_engine,
    with_precision_of,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains with it")
def test_a_run_is_refused_before_its_data_is_opened() -> None:
    words = ["data.path=nowhere.jsonl", "model.attn_implementation=flash_attention_2"]
    with pytest.raises(ConfigError, match="does not train on a CPU") as caught:
        check_engine(load("demo", [*words, "train.precision=fp16"]), World())
    assert str(caught.value).startswith("2 problems.")


def test_compiled_layers_are_refused_with_zero3() -> None:
    word = "train.compile=layers"
    run = load("demo", ["data.path=corpus.jsonl", word], "zero3")
    plan = make_plan(run, world_size=1, tokenizer_length=4096, train_tokens=10**6)
    with pytest.raises(ConfigError, match="does not work with ZeRO-3") as caught:
        resolve_engine(run.config, plan, World.from_env({}))
    assert word in str(caught.value.got) and "--deepspeed zero2" in str(caught.value.fix)


@pytest.mark.skipif(
    find_spec("flash_attn") or find_spec("kernels"),
    reason="a package of flash attention is installed",
)
def test_flash_attention_names_its_package() -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        check_attention_package("flash_attention_2")
    assert "flash-attn" in str(caught.value.fix)


def test_fp8_is_refused_for_odd_shapes() -> None:
    run = load("demo", ["data.path=corpus.jsonl", "train.loss_kernel=fp8", "model.vocab_size=4100"])
    plan = make_plan(run, world_size=1, tokenizer_length=4096, train_tokens=10**6)
    with pytest.raises(MachineError, match="fp8 does not run here") as caught:
        resolve_engine(run.config, plan, World.from_env({}))
    assert "vocab_size 4100 is not a multiple of 16" in (caught.value.got or "")


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "has_bf16", "becomes"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp16"),
        ("auto", False, True, "bf16"),
        ("auto", False, False, "fp32"),
        ("fp32", True, True, "fp32"),
        ("bf16", False, False, "bf16"),
    ],
)
def test_precision_auto(wanted: str, has_gpu: bool, has_bf16: bool, becomes: str) -> None:
    assert resolve_precision(wanted, has_gpu=has_gpu, has_bf16=has_bf16) == becomes  # type: ignore[arg-type]


def test_a_cpu_trains_in_bf16_if_it_has_units_for_it() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if "avx512f" not in flags:
        pytest.skip("known of processors with AVX-512 only")
    has_units = "avx512_bf16" in flags or "amx_bf16" in flags
    assert precision_here("auto") == ("bf16" if has_units else "fp32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's choice does not change")
def test_a_resume_keeps_the_precision_that_auto_had_then(tmp_path: Path) -> None:
    run = load("demo", ["data.path=corpus.jsonl"]).config.train
    assert with_precision_of("auto", tmp_path, run).precision == "auto"  # no checkpoint
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision / "checkpoint-4"
        folder.mkdir(parents=True)
        state = {"step": 4, "consumed_samples": 32, "max_steps": 8, "precision": precision}
        (folder / "wikillm_state.json").write_text(json.dumps(state), encoding="utf-8")
        for resume in ("auto", str(folder)):
            found = with_precision_of(resume, folder.parent, run).precision
            assert found == precision
        assert with_precision_of("never", folder.parent, run).precision == "auto"
    for damaged in ("{}", '{"precision": 7}', "not JSON"):
        (folder / "wikillm_state.json").write_text(damaged, encoding="utf-8")
        assert with_precision_of("auto", folder.parent, run).precision == "auto"
    own = load("demo", ["data.path=corpus.jsonl", "train.precision=bf16"]).config.train
    assert with_precision_of("auto", tmp_path / "fp32", own).precision == "bf16"
