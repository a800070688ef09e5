"""Rank program: train the tiny model for a step under ZeRO and save DeepSpeed's own checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.tiny_model import tiny_model


def save_partitions(checkpoint: str, stage: int, tied: bool, weights: str) -> None:
    """Train one step. Save `global_step1/` in `checkpoint` and the whole fp32 weights in `weights`.

    All ranks call it. It gathers the parameters directly, and the export must give the same values.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.init_distributed(dist_backend="gloo")
    model = tiny_model(tied=tied)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": False},
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, model_parameters=list(model.parameters())
    )
    ids = torch.arange(16).reshape(1, 16) + torch.distributed.get_rank()
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    engine.save_checkpoint(checkpoint, tag="global_step1")
    named = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(named.values()), enabled=stage == 3):
        whole = {name: parameter.detach().clone() for name, parameter in named.items()}
    if torch.distributed.get_rank() == 0:
        engine.module.config.save_pretrained(checkpoint)
        torch.save(whole, weights)
        (Path(checkpoint) / "accelerator").write_text(get_accelerator().device_name())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
