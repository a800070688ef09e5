"""What only a GPU can show: no synchronisation in a step, compiled layers without breaks, ZeRO stages, peak memory.

None of these tests has been run yet where this file was written: without a GPU each is a skip with that reason.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from harness.programs import train_with_options
from harness.ranks import run_ranks
from transformers import Qwen2Config, Qwen2ForCausalLM

from wikillm.config.schema import Checkpointing
from wikillm.models.attention_mask import prepare_masks
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile import compile_layers, compiled_graphs
from wikillm.models.cuda_graphs import graph_layers
from wikillm.models.merged_projections import merge_projections
from wikillm.models.patch import patch_loss

pytestmark = pytest.mark.gpu

BATCH, LENGTH, VOCAB = 4, 256, 8192


def build(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=512, tie_word_embeddings=True, use_cache=False, pad_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to("cuda", dtype)


def batch(seed: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(seed)).cuda()
    targets = ids[:, 1:].contiguous()
    found = {"input_ids": ids[:, :-1].contiguous(), "labels": targets, "shift_labels": targets}
    return found | {"num_items_in_batch": torch.tensor(targets.numel(), device="cuda")}


def loss_and_gradients(model: Any) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    return float(loss.detach()), [p.grad.float() for p in model.parameters()]


@pytest.mark.parametrize("kernel", ["chunked", "fp8"])
@pytest.mark.parametrize("is_merged", [False, True])
def test_forward_and_backward_wait_for_nothing(kernel: Any, is_merged: bool) -> None:
    """No operation of a micro-step blocks the host, masks of documents included: torch raises at the first that does."""
    model, inputs = build(), batch()
    inputs["position_ids"] = torch.arange(LENGTH, device="cuda").remainder(100).expand(BATCH, -1).contiguous()
    prepare_masks(model)
    checkpoint_layers(model, "selective")
    patch_loss(model, kernel, rows=BATCH * LENGTH, device_type="cuda")
    if is_merged:
        merge_projections(model)
    loss_and_gradients(model)  # warm: lazy initialisation may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_layers_are_one_graph_and_the_same_numbers() -> None:
    stock = build()
    ours = copy.deepcopy(stock)
    patch_loss(ours, rows=BATCH * LENGTH, device_type="cuda")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(ours, {(BATCH, LENGTH)})
    expected, found = loss_and_gradients(stock), loss_and_gradients(ours)
    assert compiled_graphs() == 1
    assert found[0] == pytest.approx(expected[0], rel=5e-3)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)) < 3e-2  # bf16 products


@pytest.mark.parametrize("kernel", ["chunked", "fp8"])
def test_merged_projections_and_the_8_bit_head_give_the_stock_gradients(kernel: Any) -> None:
    stock = build()
    ours = copy.deepcopy(stock)
    patch_loss(ours, kernel, rows=BATCH * LENGTH, device_type="cuda")
    merge_projections(ours)
    expected, found = loss_and_gradients(stock), loss_and_gradients(ours)
    assert found[0] == pytest.approx(expected[0], rel=5e-3)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)) < (3e-2 if kernel == "chunked" else 0.15)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_layers_give_the_same_gradients_batch_after_batch(dtype: torch.dtype, is_compiled: bool) -> None:
    """What the recorder of the CPU tests cannot show: CUDA's own graphs, and the memory that they share."""
    stock = build(dtype)
    ours = copy.deepcopy(stock)
    torch._dynamo.reset()
    for model in (stock, ours):
        patch_loss(model, rows=BATCH * LENGTH, device_type="cuda")
        if is_compiled:
            compile_layers(model, {(BATCH, LENGTH)})
    graph_layers(ours, (BATCH, LENGTH))
    for step in range(3):
        for model in (stock, ours):
            model.zero_grad()
            for seed in (2 * step, 2 * step + 1):
                with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.float32):
                    loss = model(**batch(seed)).loss
                loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
        for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
            off = (mine.grad.float() - theirs.grad.float()).norm() / theirs.grad.float().norm().clamp_min(1e-12)
            assert float(off) < 5e-2, step


def held_bytes(model: Any) -> int:
    """What the forward pass of the decoder keeps on the GPU."""
    ids = batch()["input_ids"]
    model.model(ids)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = model.model(ids).last_hidden_state
    found = torch.cuda.memory_allocated() - before
    assert out.requires_grad
    return found


@pytest.mark.parametrize("is_compiled", [False, True])
def test_checkpointing_keeps_what_it_says_and_gives_the_same_gradients(is_compiled: bool) -> None:
    """Attention's kernel is known by its operator's name, which is another on a GPU."""
    held, outcomes = [], []
    for kind in get_args(Checkpointing):
        model = build(torch.bfloat16)
        torch._dynamo.reset()
        if kind != "none":
            checkpoint_layers(model, kind)
        if is_compiled:
            compile_layers(model, {(BATCH, LENGTH)})
        outcomes.append(loss_and_gradients(model))
        held.append(held_bytes(model))
    assert held == sorted(held, reverse=True) and len(set(held)) == 4, held
    for loss, gradients in outcomes[1:]:
        assert loss == pytest.approx(outcomes[0][0], rel=5e-3)
        for mine, theirs in zip(gradients, outcomes[0][1], strict=True):
            assert float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)) < 3e-2


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("recipe", [None, "zero1", "zero2", "zero3"])
def test_every_stage_trains_the_same_on_one_gpu(recipe: str | None, graphs: str, words: Any, tmp_path: Path) -> None:
    """bf16, one GPU, NCCL: losses within bf16's rounding of the first stage's, falling, and a checkpoint at the end."""
    if recipe == "zero3" and graphs == "on":
        pytest.skip("weights are gathered inside the layers")
    options = {"deepspeed": recipe} if recipe else {}
    more = ("train.precision=bf16", f"train.cuda_graphs={graphs}", "train.per_device_train_batch_size=2")
    ranks = run_ranks(train_with_options, 1, words(tmp_path / "run", *more), options, DS_ACCELERATOR="cuda")
    assert ranks[0]["code"] == 0, ranks[0]["message"]
    plain = run_ranks(
        train_with_options, 1, words(tmp_path / "plain", "train.precision=bf16"), {}, DS_ACCELERATOR="cuda"
    )
    assert ranks[0]["losses"].keys() == plain[0]["losses"].keys()
    for step, loss in ranks[0]["losses"].items():
        assert loss == pytest.approx(plain[0]["losses"][step], rel=1e-2), step


def test_a_step_keeps_no_logits() -> None:
    """The peak of forward and backward beyond weights and gradients stays below one copy of all logits in float32."""
    model = build(torch.bfloat16)
    patch_loss(model, rows=BATCH * LENGTH, device_type="cuda")
    loss_and_gradients(model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    inputs = {key: value.repeat(16, 1) if value.ndim == 2 else value * 16 for key, value in batch().items()}
    with torch.no_grad():
        model(**inputs)
    all_logits = 16 * BATCH * LENGTH * VOCAB * 4
    assert torch.cuda.max_memory_allocated() - before < all_logits / 2
