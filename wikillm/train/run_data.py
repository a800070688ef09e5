"""Opens the token streams of a run, and gives each rank its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from wikillm.data.read.corpus import NamedStream, Order
from wikillm.data.read.loader import (
    BatchShape,
    DocumentMask,
    SequenceShard,
    document_mask,
    eval_loader,
    train_loader,
)
from wikillm.data.read.step_samples import SkipWindow
from wikillm.data.store.store import TokenStream
from wikillm.evals.loss import HeldOutLoss, held_out_loss
from wikillm.plan.batch import split_batch
from wikillm.plan.horizon import count_sequences, refuse_small_corpus
from wikillm.train.collectives import ControlGroup
from wikillm.train.context import RunContext
from wikillm.train.spikes import read_skips
from wikillm.train.wait_for_data import DataWaiter


@dataclass(frozen=True, slots=True)
class RunData:
    """The data that the trainer reads.

    Attributes:
        shard: this rank's part of each sequence; None unless ranks share sequences.
        skips: the windows of samples that this run skips, in the order of the decisions.
        wait_for: wait_for(n) returns when every rank can read samples 0 to n - 1. (all ranks)
    """

    train: TokenStream
    val: tuple[NamedStream, ...]
    order: Order
    shape: BatchShape
    max_eval_tokens: int | None
    eval_micro_batch: int
    workers: int
    mask: DocumentMask | None
    shard: SequenceShard | None
    wait_for: Callable[[int], None]
    skips: tuple[SkipWindow, ...]

    def loader(self, steps: range, consumed_samples: int) -> DataLoader[Any]:
        """This rank's batches of `steps`; the first step begins at sample `consumed_samples`."""
        return train_loader(
            self.train,
            self.order,
            self.shape,
            total_steps=steps.stop,
            first_step=steps.start,
            consumed_samples=consumed_samples,
            workers=self.workers,
            mask=self.mask,
            shard=self.shard,
            skips=self.skips,
        )

    def held_out_losses(
        self,
        model: nn.Module,
        device: torch.device,
        group: ControlGroup,
        should_stop: Callable[[], bool],
    ) -> dict[str, HeldOutLoss] | None:
        """Losses by stream name; None if `should_stop` ended the evaluation. (all ranks)"""
        found: dict[str, HeldOutLoss] = {}
        for stream in self.val:
            loader = eval_loader(
                stream.tokens,
                self.order.sequence_length,
                micro_batch=self.eval_micro_batch,
                world_size=self.shape.world_size,
                rank=self.shape.rank,
                max_tokens=self.max_eval_tokens,
                mask=self.mask,
                shard=self.shard,
            )
            result = held_out_loss(
                model,
                loader,
                bytes_per_token=stream.bytes_per_token,
                device=device,
                sum_over_ranks=group.sum,
                should_stop=should_stop,
            )
            if result is None:
                return None
            found[stream.name] = result
        return found


def open_run_data(context: RunContext) -> RunData:
    """The streams, the order and this rank's part of each batch. (all ranks)"""
    cfg = context.resolved.config
    plan = context.plan
    corpus = context.corpus
    order = corpus.order(plan.sequence_length, cfg.run.seed)
    shared = plan.sequence_parallel_size
    group, part = divmod(context.world.rank, shared)
    waiter = DataWaiter(order, context.group, context.signals, lambda: _check_size(context))
    skips: Any = context.group.gather(
        read_skips(context.run.path) if context.world.is_main else None
    )[0]
    return RunData(
        train=corpus.train,
        val=corpus.streams("val", cfg.train.max_eval_tokens),
        order=order,
        shape=BatchShape(plan.micro_batch, plan.accumulation, plan.sequence_groups, group),
        max_eval_tokens=cfg.train.max_eval_tokens,
        eval_micro_batch=cfg.train.per_device_eval_batch_size or plan.micro_batch,
        workers=cfg.train.dataloader_num_workers,
        mask=document_mask(
            cfg.train.document_mask, cfg.model.attn_implementation, corpus.manifest.tokenizer.eos_id
        ),
        shard=SequenceShard(shared, part) if shared > 1 else None,
        wait_for=waiter.wait_for,
        skips=skips,
    )


def _check_size(context: RunContext) -> None:
    """Raise ConfigError when a finished store turns out smaller than one global batch.

    The plan could not check the size while the store was still being built.
    """
    plan = context.plan
    tokens = context.corpus.train_tokens
    if plan.epochs is None and tokens is not None:
        train = context.resolved.config.train
        origins = context.resolved.origins
        batch = split_batch(train, origins, plan.world_size)
        sequences = count_sequences(tokens, plan.sequence_length)
        refuse_small_corpus(train, origins, batch, sequences, tokens)
