"""What only a GPU shows: no synchronisation, compiled layers, its kernels, peak memory.

None of these tests has been run on a GPU yet: without one each is a skip with that reason. Those of
compiled layers, tiles and elementwise functions were run with "cpu" for "cuda", by hand. The fused
losses, chunked, Triton and 8-bit, over types and odd shapes are in `tests/unit/kernels`, on both
devices.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
from typing import Any, get_args

import pytest
import torch
from harness.three_layers import compiled_graphs
from transformers import Qwen2Config, Qwen2ForCausalLM

from wikillm.config.schema_types import Checkpointing
from wikillm.kernels import chunks, reference
from wikillm.kernels.chunks import loss_chunk_rows
from wikillm.kernels.dispatch import loss_function
from wikillm.kernels.tiled_swiglu import tiled_swiglu
from wikillm.models.attention_mask import prepare_masks
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile import compile_layers
from wikillm.models.compile_elementwise import compile_elementwise, restore_rotation
from wikillm.models.fused_loss import patch_loss
from wikillm.models.tiled_mlp import tile_mlp

pytestmark = pytest.mark.gpu

BATCH, LENGTH, VOCAB = 4, 256, 8192


def build(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512, tie_word_embeddings=True, use_cache=False, pad_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to("cuda", dtype)


def batch(seed: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(
        0, VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(seed)
    ).cuda()
    targets = ids[:, 1:].contiguous()
    found = {"input_ids": ids[:, :-1].contiguous(), "labels": targets, "shift_labels": targets}
    return found | {"num_items_in_batch": torch.tensor(targets.numel(), device="cuda")}


def loss_and_gradients(model: Any, **more: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """Of a model in float32 under autocast, of one in bf16 as it is."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=model.dtype is torch.float32):
        loss = model(**batch(), **more).loss
    loss.backward()
    return float(loss.detach()), [p.grad.float() for p in model.parameters()]


@pytest.mark.parametrize("kernel", ["chunked", "fp8"])
def test_forward_and_backward_wait_for_nothing(kernel: Any) -> None:
    """No operation of a micro-step blocks the host, masks of documents included."""
    model, inputs = build(), batch()
    inputs["position_ids"] = (
        torch.arange(LENGTH, device="cuda").remainder(100).expand(BATCH, -1).contiguous()
    )
    prepare_masks(model)
    checkpoint_layers(model, "selective")
    patch_loss(model, kernel, rows=BATCH * LENGTH, device_type="cuda")
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
        assert (
            float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)) < 3e-2
        )  # bf16 products


@pytest.mark.parametrize("switch", ["tiled", "elementwise"])
def test_other_layers_give_the_stock_gradients(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 96 tokens, the last one smaller; compiled functions."""
    stock = build()
    ours = copy.deepcopy(stock)
    expected = loss_and_gradients(stock)  # before: the rotation is compiled for both from then on
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if switch == "tiled":
        monkeypatch.setitem(chunks.MLP_CHUNKS, "cuda", (1, 96, 96))
        assert "96 rows" in str(tile_mlp(ours, rows=BATCH * LENGTH, device_type="cuda"))
    else:
        compile_elementwise(ours)
    found = loss_and_gradients(ours)
    if switch == "elementwise":
        restore_rotation(ours)
        assert compiled_graphs() == 3, "norms, rotation, SwiGLU"
    assert found[0] == pytest.approx(expected[0], rel=5e-3)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert (
            float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)) < 3e-2
        )  # bf16 products


@pytest.mark.skipif(not importlib.util.find_spec("flash_attn"), reason="no flash-attn")
def test_flash_attention_keeps_to_documents_as_sdpa_does() -> None:
    stock = build(torch.bfloat16)
    with torch.no_grad():
        for parameter in stock.parameters():  # large enough that attention decides something
            if parameter.dim() > 1:
                parameter.mul_(4)
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation("flash_attention_2")
    documents = {
        "position_ids": torch.arange(LENGTH, device="cuda")
        .remainder(100)
        .expand(BATCH, -1)
        .contiguous()
    }
    torch._dynamo.reset()
    expected, found = loss_and_gradients(stock, **documents), loss_and_gradients(ours, **documents)
    without = loss_and_gradients(stock)

    def off(gradients: list[torch.Tensor]) -> float:
        pairs = list(zip(gradients, expected[1], strict=True))
        apart = sum(float((mine - theirs).square().sum()) for mine, theirs in pairs)
        return (apart / sum(float(theirs.square().sum()) for _, theirs in pairs)) ** 0.5

    assert found[0] == pytest.approx(expected[0], rel=5e-3)
    assert off(found[1]) < 5e-2 < off(without[1]) / 2, "or the masks decide nothing"


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.012), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize(
    ("rows", "hidden", "width", "chunk"),
    [(37, 24, 40, 8), (111, 24, 40, 500), (1, 8, 16, 16), (515, 72, 136, 128)],
)
def test_the_tiled_swiglu_is_the_reference(
    dtype: torch.dtype, bound: float, rows: int, hidden: int, width: int, chunk: int
) -> None:
    """Against float64; on a GPU the weights' gradients are float32 sums of products."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(rows, hidden), (width, hidden), (width, hidden), (hidden, width)]
    drawn = [
        (torch.randn(shape, generator=generator) / (4 if i else 1)).to(dtype)
        for i, shape in enumerate(shapes)
    ]
    weights = torch.cos(torch.arange(rows * hidden)).view(rows, hidden)

    def outcome(function: Any, kind: torch.dtype, **options: int) -> list[torch.Tensor]:
        tensors = [tensor.to("cuda", kind).requires_grad_() for tensor in drawn]
        out = function(*tensors, **options)
        out.backward(weights.to(dtype).to("cuda", kind))
        return [out.detach(), *(tensor.grad for tensor in tensors)]

    truth = outcome(reference.swiglu, torch.float64)
    for mine, true in zip(outcome(tiled_swiglu, dtype, chunk_rows=chunk), truth, strict=True):
        assert mine.dtype == dtype
        assert float((mine.double() - true).norm() / true.norm()) < bound


@pytest.mark.parametrize("kernel", ["chunked", "fp8"])
def test_the_chunked_and_the_8_bit_head_give_the_stock_gradients(kernel: Any) -> None:
    stock = build()
    ours = copy.deepcopy(stock)
    patch_loss(ours, kernel, rows=BATCH * LENGTH, device_type="cuda")
    expected, found = loss_and_gradients(stock), loss_and_gradients(ours)
    assert found[0] == pytest.approx(expected[0], rel=5e-3)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12)) < (
            3e-2 if kernel == "chunked" else 0.15
        )


def held_bytes(model: Any) -> int:
    """What the forward pass of the decoder keeps on the GPU."""
    ids = batch()["input_ids"]
    model.model(ids)
    gc.collect()  # patched layers are reference cycles
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


def test_the_head_keeps_no_logits() -> None:
    """Its peak stays below half a copy of all logits in float32."""
    rows = 64 * BATCH * LENGTH
    hidden_NH = torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight_VH = torch.randn(VOCAB, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels_N = torch.randint(0, VOCAB, (rows,), device="cuda")
    chunk = loss_chunk_rows(rows, VOCAB, "cuda")
    assert chunk <= rows // 8, "several chunks, or this test sees nothing"
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = loss_function("chunked")(hidden_NH, weight_VH, labels_N, count=rows, chunk_rows=chunk)
    loss.backward()
    assert hidden_NH.grad is not None and weight_VH.grad is not None
    assert torch.cuda.max_memory_allocated() - before < rows * VOCAB * 4 / 2


@torch.no_grad()
def test_an_evaluation_keeps_no_logits() -> None:
    model = build(torch.bfloat16)
    patch_loss(model, rows=64 * BATCH * LENGTH, device_type="cuda")
    inputs = {
        key: value.repeat(64, 1) if value.ndim == 2 else value * 64
        for key, value in batch().items()
    }
    model(**batch())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(**inputs)
    assert torch.cuda.max_memory_allocated() - before < 64 * BATCH * LENGTH * VOCAB * 4 / 2
