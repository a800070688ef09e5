"""Attention within documents: a packed sequence gives each document the logits it has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness.held import held_bytes
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from wikillm.core.errors import WikiLLMError
from wikillm.data.order.blocks import SampleOrder
from wikillm.data.read.loader import DocumentMask, Samples, document_mask, eval_loader
from wikillm.models.attention_mask import prepare_masks
from wikillm.models.fused_loss import patch_loss
from wikillm.models.patching import remove_patches, restore_forward
from wikillm.models.shape import ARCHITECTURES

EOS, VOCAB, T = 0, 97, 24
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "use_cache": False,
}  # fmt: skip


class Documents:
    """A stream of documents of the given lengths, EOS included."""

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        documents = [np.append(rng.integers(1, VOCAB, length - 1), EOS) for length in lengths]
        self.ids = np.concatenate(documents).astype(np.uint32)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


def model_of(kind: str, attention: str) -> Any:
    torch.manual_seed(1)
    config, model = ARCHITECTURES[kind]
    made = model._from_config(config(**SHAPE), attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # large enough that attention decides something
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else None
    return made


def packed_batch(lengths: list[int], seed: int = 0, shuffle: bool = True) -> dict[str, Any]:
    stream = Documents(lengths, seed)
    order = SampleOrder(stream.n_tokens, T, seed=seed, shuffle=shuffle)
    samples = Samples(stream, order, order.blocks_per_epoch, DocumentMask(EOS))
    return samples.batch(range(order.blocks_per_epoch))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@torch.no_grad()
def test_a_packed_document_has_the_same_logits_as_alone(kind: str, attention: str) -> None:
    model = model_of(kind, attention)
    batch = packed_batch([5, 2, 30, 1, 1, 9, 60, 3, 17])
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    unmasked = model(input_ids=batch["input_ids"]).logits
    pieces = furthest = 0
    for row, ids in enumerate(batch["input_ids"]):
        begins = [*torch.nonzero(batch["position_ids"][row] == 0).flatten().tolist(), T]
        for begin, end in zip(begins, begins[1:], strict=False):
            alone = model(input_ids=ids[None, begin:end]).logits[0]
            torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-4, atol=2e-5)
            furthest = max(furthest, float((unmasked[row, begin:end] - alone).abs().max()))
            pieces += 1
    assert pieces > 9 and furthest > 0.1, (
        "without the mask they must differ, or this test sees nothing"
    )


@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(0, 99), st.booleans())
def test_positions_count_from_the_beginning_of_each_document(
    lengths: list[int], seed: int, shuffle: bool
) -> None:
    """Against the document of each token by its place in the stream; a ring's end restarts."""
    if sum(lengths) < 2:
        return
    stream = Documents(lengths, seed)
    order = SampleOrder(stream.n_tokens, T, seed=seed, shuffle=shuffle)
    batch = Samples(stream, order, 99, DocumentMask(EOS, with_lengths=True)).batch(
        range(order.blocks_per_epoch)
    )
    document = np.repeat(np.arange(len(lengths)), lengths)
    for row, stretches in enumerate(order.target_ranges(np.arange(order.blocks_per_epoch))):
        positions = np.concatenate([np.arange(a, b) for a, b in stretches])
        expected, previous = [], None
        for position in positions.tolist():
            begins = (
                previous is None
                or position != previous + 1
                or document[position] != document[previous]
            )
            expected.append(0 if begins else expected[-1] + 1)
            previous = position
        assert batch["position_ids"][row, : len(expected)].tolist() == expected
    bounds = batch["cu_seq_lens_q"].tolist()
    flat = batch["position_ids"].flatten()
    assert (
        bounds[0] == 0 and bounds[-1] == len(flat) and batch["cu_seq_lens_q"].dtype == torch.int32
    )
    lengths_of_blocks = np.diff(bounds)
    assert np.concatenate([np.arange(n) for n in lengths_of_blocks]).tolist() == flat.tolist()
    assert batch["max_length_q"] == batch["max_length_k"] == lengths_of_blocks.max()


def test_document_mask_applies_to_training_and_evaluation() -> None:
    assert document_mask("off", "sdpa", EOS) is None
    assert document_mask("on", "sdpa", EOS) == DocumentMask(EOS)
    flash = document_mask("on", "flash_attention_2", EOS)
    assert flash is not None and flash.with_lengths
    stream, mask = Documents([7, 8, 9]), document_mask("on", "sdpa", EOS)
    (batch,) = eval_loader(stream, T, micro_batch=1, world_size=1, rank=0, mask=mask)
    assert batch["position_ids"][0, :23].tolist() == [*range(7), *range(8), *range(8)]


@pytest.mark.parametrize("precision", ["float64", "float32", "autocast"])
@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_a_mask_shared_by_all_layers_gives_the_same_bits(kind: str, precision: str) -> None:
    batch, model = packed_batch([5, 2, 30, 1, 9, 40]), model_of(kind, "sdpa").train()
    model = model.double() if precision == "float64" else model
    found = []
    for is_shared in (False, True):
        if is_shared:
            prepare_masks(model)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = model(**batch).loss
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(
        torch.equal(own, shared) for own, shared in zip(found[0][1], found[1][1], strict=True)
    )
    remove_patches(model)
    assert "forward" not in model.model.__dict__


def test_a_further_layer_keeps_no_further_mask() -> None:
    """Stock Hugging Face keeps a T x T mask per layer for each of the four sequences."""
    ids = torch.ones(4, 256, dtype=torch.long)
    positions = torch.cat([torch.arange(100), torch.arange(156)]).expand(4, -1)

    def held(layers: int, *, is_shared: bool) -> int:
        made = Qwen2ForCausalLM(Qwen2Config(**SHAPE | {"num_hidden_layers": layers})).train()
        if is_shared:
            prepare_masks(made)
        return held_bytes(made, input_ids=ids, position_ids=positions)

    stock, shared = (held(4, is_shared=way) - held(2, is_shared=way) for way in (False, True))
    assert stock - shared == 2 * 4 * 256 * 256 * 4


class Reads(TorchDispatchMode):
    """How often a value is read out of a tensor: on a GPU the host would wait."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("documents", [False, True])
def test_no_value_of_a_batch_is_read_on_the_host(documents: bool) -> None:
    batch, model = packed_batch([5, 2, 30, 1, 9, 40]), model_of("qwen2", "sdpa").train()
    inputs = (
        batch
        if documents
        else {name: batch[name] for name in ("input_ids", "labels", "shift_labels")}
    )
    patch_loss(model, "chunked", rows=T, device_type="cpu")
    found = []
    for _ in ("stock", "prepared"):
        with Reads() as reads:
            loss = model(**inputs, num_items_in_batch=torch.tensor(10)).loss
            loss.backward()
        found.append((reads.count, loss.detach()))
        restore_forward(model.model)
        prepare_masks(model)
    assert found[0][0] > 0 and found[1][0] == 0
    assert torch.equal(found[0][1], found[1][1])


@torch.no_grad()
def test_inputs_without_documents_or_with_a_mask_give_the_stock_results() -> None:
    model = model_of("qwen2", "sdpa")
    ids = torch.arange(1, 13).view(2, 6)
    plain = model(input_ids=ids).logits
    padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    masked = model(input_ids=ids, attention_mask=padded).logits
    text = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True)
    prepare_masks(model)
    assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids, attention_mask=padded).logits, masked)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True), text)


def test_other_attention_and_a_second_patch_are_refused() -> None:
    with pytest.raises(WikiLLMError, match="eager"):
        prepare_masks(model_of("qwen2", "eager"))
    model = model_of("qwen2", "sdpa")
    prepare_masks(model)
    with pytest.raises(WikiLLMError, match="sdpa.* patched"):
        prepare_masks(model)
