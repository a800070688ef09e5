"""Rank program: attention on sequences split across ranks, compared with whole sequences."""

from __future__ import annotations

from typing import Any


def attend_over_ranks(
    query_heads: int, key_heads: int, dtype: str, documents: bool
) -> dict[str, float]:
    """Compare attention on this rank's part with HF's on whole sequences and DeepSpeed's Ulysses.

    Returns the largest difference in the forward and backward pass, relative to the largest
    element: `out`, `query`, `key`, `value`, and `deepspeed`.
    """
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM, Qwen2Config

    from wikillm.models.attention_mask import same_document
    from wikillm.models.sequence_parallel import split_sequences

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    rank = dist.get_rank()
    size = dist.get_world_size()
    batch = 2
    length = 16
    width = 8
    config = Qwen2Config(
        hidden_size=query_heads * width, num_hidden_layers=1,
        num_attention_heads=query_heads, num_key_value_heads=key_heads,
        intermediate_size=8, vocab_size=16, attn_implementation="sdpa",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    shapes = {"query": query_heads, "key": key_heads, "value": key_heads}
    whole = {
        k: torch.randn(batch, n, length, width, dtype=getattr(torch, dtype))
        for k, n in shapes.items()
    }
    grad = torch.randn(batch, length, query_heads, width, dtype=getattr(torch, dtype))
    positions = torch.arange(length).expand(batch, -1)
    mask = (
        same_document(torch.cat([positions[:, :5], positions[:, :11]], dim=1))
        if documents
        else None
    )
    columns = slice(rank * length // size, (rank + 1) * length // size)

    def run(
        parts: dict[str, torch.Tensor], grad: torch.Tensor, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attention = model.model.layers[0].self_attn
        leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
        options = {"scaling": attention.scaling, "dropout": 0.0, **kwargs}
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](attention, *leaves.values(), mask, **options)
        out.reshape(grad.shape).backward(grad)
        return {"out": out.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}  # type: ignore[dict-item]

    wanted = run(whole, grad)
    parts = {name: x[:, :, columns] for name, x in whole.items()}
    part_grad = grad[:, columns]
    split_sequences(model, size)
    stretch = {"position_ids": positions[:, columns], "sequence_parallel": True}
    found = run(parts, part_grad, **stretch)
    again = run(whole, grad)  # a call on whole sequences
    assert all(torch.equal(again[name], wanted[name]) for name in wanted), (
        "patched, whole sequences differ"
    )

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).abs().max() / b.double().abs().max())

    differences = {
        name: off(part, wanted[name][:, columns] if name == "out" else wanted[name][:, :, columns])
        for name, part in found.items()
    }
    if not documents:  # DeepSpeed's supports documents only with flash attention
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        UlyssesSPAttentionHF.register_with_transformers(
            model,
            core_attn_implementation="sdpa",
            sequence_parallel_size=size,
            micro_batch_size=batch,
        )
        theirs = run(parts, part_grad, position_ids=positions[:, columns])
        differences["deepspeed"] = max(
            off(theirs[name].reshape(found[name].shape), found[name]) for name in found
        )
    return differences
