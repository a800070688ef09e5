"""Turn sample numbers into batches, and divide the samples over ranks and steps.

A global batch is G consecutive samples of the order. With micro-batch size m, rank r of W reads the
samples [a*W*m + r*m, a*W*m + (r+1)*m) of the global batch in micro-step a. So every (W, m,
accumulation) with the same product reads the same global batch. Loader workers keep no state: they
receive sample numbers.

A batch is {"input_ids", "labels", "shift_labels"}, int64, each B x T. The targets are already
shifted, so the model uses `shift_labels`. `labels` has equal values; it is there because Hugging
Face's models compute a loss only if it is present. With a `DocumentMask` a batch also has
`position_ids`, B x T, which start at 0 in each document (see `rows`), and `cu_seq_lens_*` for flash
attention. This is the only module of `data` that imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from wikillm.core.errors import WikiLLMError
from wikillm.data.order.blocks import SampleOrder
from wikillm.data.read.corpus import Order
from wikillm.data.read.rows import (
    PADDING,
    cumulative_lengths,
    document_positions,
    sample_rows,
)
from wikillm.data.read.step_samples import SkipWindow, StepSamples
from wikillm.data.store.store import TokenStream

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The division of a global batch into micro-batches, in sequences.

    Ranks that share sequences form a group. `world_size` is then the number of groups, and `rank`
    the number of this rank's group.
    """

    micro_batch: int
    accumulation: int
    world_size: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Number of sequences in an optimizer step, over all ranks."""
        return self.micro_batch * self.accumulation * self.world_size

    def samples_of(self, base: int, micro_step: int) -> range:
        """This rank's samples in a micro-step of the global batch that begins at sample `base`."""
        first = base + (micro_step * self.world_size + self.rank) * self.micro_batch
        return range(first, first + self.micro_batch)


@dataclass(frozen=True, slots=True)
class DocumentMask:
    """Keeps attention within documents. `with_lengths` adds lengths for flash attention."""

    eos_id: int
    with_lengths: bool = False


@dataclass(frozen=True, slots=True)
class SequenceShard:
    """The part of each sequence that a rank holds: the `index`-th of `size` equal parts."""

    size: int
    index: int

    def of(self, batch: Batch) -> Batch:
        """This part of a batch: B x T/size each, with `position_ids` and `sequence_parallel`.

        Values that attention needs for whole sequences are not cut: the lengths for flash
        attention, and `document_positions` (B x T, within documents) for other kernels.
        """
        whole_BT = batch["input_ids"]
        part = whole_BT.shape[1] // self.size
        columns = slice(self.index * part, (self.index + 1) * part)
        positions_BT = batch.get("position_ids")
        if positions_BT is None:
            positions_BT = torch.arange(whole_BT.shape[1]).expand(whole_BT.shape)
        elif "cu_seq_lens_q" not in batch:
            batch = batch | {"document_positions": positions_BT}
        labels = batch["labels"][:, columns].contiguous()
        return batch | {
            "input_ids": whole_BT[:, columns].contiguous(),
            "labels": labels,
            "shift_labels": labels,
            "position_ids": positions_BT[:, columns].contiguous(),
            "sequence_parallel": True,
        }


def document_mask(setting: str, attention: str, eos_id: int) -> DocumentMask | None:
    """The mask of `train.document_mask`. `attention`: Hugging Face's attention implementation."""
    if setting == "off":
        return None
    return DocumentMask(eos_id, with_lengths=attention.startswith("flash_attention"))


@dataclass(frozen=True, eq=False)
class Samples(Dataset[Batch]):
    """A map-style dataset that returns several samples of a stream as one batch."""

    tokens: TokenStream
    order: Order
    length: int
    mask: DocumentMask | None = None
    shard: SequenceShard | None = None

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Batch | WikiLLMError:
        """The batch of these samples, B x T each, or this rank's part of that batch.

        The index `PADDING` gives a row without targets. A DataLoader worker returns an error
        instead of raising it: torch would replace a raised error by a text with its traceback.
        """
        try:
            return self.batch(indices)
        except WikiLLMError as error:
            if get_worker_info() is None:
                raise
            return error

    def batch(self, indices: Sequence[int]) -> Batch:
        """As `__getitems__`; raises the errors of the token stream and its order."""
        wanted = np.asarray(indices, dtype=np.int64)
        inputs, targets, joins = sample_rows(self.tokens, self.order, wanted)
        labels = torch.from_numpy(targets)
        batch: Batch = {"input_ids": torch.from_numpy(inputs)}
        batch["labels"] = batch["shift_labels"] = labels
        if self.mask is not None:
            positions = document_positions(inputs, self.mask.eos_id, joins)
            batch["position_ids"] = torch.from_numpy(positions)
            if self.mask.with_lengths:
                bounds, longest = cumulative_lengths(positions)
                batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = torch.from_numpy(bounds)
                batch["max_length_q"] = batch["max_length_k"] = longest
        return batch if self.shard is None else self.shard.of(batch)


@dataclass(frozen=True, eq=False)
class GlobalBatches(Sampler[list[int]]):
    """Sample indices of this rank's micro-batches, from `consumed_samples` on, without `skips`.

    `len()` is the number of optimizer steps of the whole run, including those before `first_step`.
    Hugging Face's Trainer derives its number of epochs from this length, so a run is one epoch. The
    Trainer receives all micro-batches of a step at once (see `train.trainer`).
    """

    shape: BatchShape
    total_steps: int
    consumed_samples: int
    first_step: int
    skips: Sequence[SkipWindow] = ()

    def __len__(self) -> int:
        return self.total_steps

    def __iter__(self) -> Iterator[list[int]]:
        shape = self.shape
        samples = StepSamples(
            shape.global_batch, self.first_step, self.consumed_samples, self.skips
        )
        for step in range(self.first_step, self.total_steps):
            base = samples.of(step).start
            for micro_step in range(shape.accumulation):
                yield list(shape.samples_of(base, micro_step))


def eval_batches(samples: int, micro_batch: int, world_size: int, rank: int) -> list[list[int]]:
    """This rank's batches over the samples [0, samples). One rank reads each sample, once.

    All ranks get the same number of batches, filled up with rows of `PADDING`: ZeRO-3 gathers
    weights in every forward pass, so a rank without a batch would block the others.
    """
    stride = micro_batch * world_size
    starts = range(rank * micro_batch, -(-samples // stride) * stride, stride)
    return [
        [n if n < samples else PADDING for n in range(start, start + micro_batch)]
        for start in starts
    ]


def as_is(batch: Any) -> Any:
    """Return the batch unchanged. `Samples` returns whole batches, so nothing is collated."""
    return batch


def train_loader(
    tokens: TokenStream,
    order: Order,
    shape: BatchShape,
    *,
    total_steps: int,
    first_step: int = 0,
    consumed_samples: int = 0,
    workers: int = 0,
    mask: DocumentMask | None = None,
    shard: SequenceShard | None = None,
    skips: Sequence[SkipWindow] = (),
) -> DataLoader[Any]:
    """Batches of this rank from optimizer step `first_step` to the end."""
    samples = Samples(tokens, order, total_steps * shape.global_batch, mask, shard)
    batches = GlobalBatches(shape, total_steps, consumed_samples, first_step, skips)
    return DataLoader(
        samples, batch_sampler=batches, collate_fn=as_is, num_workers=workers, **_options(workers)
    )


def eval_loader(
    tokens: TokenStream,
    sequence_length: int,
    *,
    micro_batch: int,
    world_size: int,
    rank: int,
    max_tokens: int | None = None,
    mask: DocumentMask | None = None,
    shard: SequenceShard | None = None,
) -> DataLoader[Any]:
    """Batches of this rank over the stream, or over its first `max_tokens` targets."""
    order = SampleOrder(tokens.n_tokens, sequence_length, seed=0, shuffle=False)
    count = order.blocks_per_epoch
    if max_tokens is not None:
        count = min(count, -(-max_tokens // sequence_length))
    batches = eval_batches(count, micro_batch, world_size, rank)
    samples = Samples(tokens, order, count, mask, shard)
    return DataLoader(samples, batch_sampler=batches, collate_fn=as_is, **_options(0))


def to_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Copy the batch to `device` without waiting. `labels` and `shift_labels` share one copy.

    On a GPU machine the loader's memory is pinned; torch's allocator reuses it only after the
    copies are done.
    """
    is_shared = "labels" in batch and "shift_labels" in batch
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if not (is_shared and name == "labels")
    }
    if is_shared:
        moved["labels"] = moved["shift_labels"]
    return moved


def _options(workers: int) -> dict[str, Any]:
    options: dict[str, Any] = {"pin_memory": torch.cuda.is_available()}
    if workers:
        # Always fork workers, even in a process that a fork server started: torch's workers watch
        # their parent to notice that training was killed, and a fork server outlives training.
        options |= {
            "prefetch_factor": 4,
            "persistent_workers": True,
            "multiprocessing_context": _Fork(),
            "worker_init_fn": _end_with_parent,
        }
    return options


class _Worker(ForkProcess):
    """A loader worker that ends only at a SIGTERM from its parent.

    Launchers signal the whole process tree, but the training process still ends its step and saves.
    torch's own handler would end the worker, and the training with it, at any SIGTERM. The signals
    are blocked before the fork, so that every thread of the worker inherits the mask: torch starts
    threads before it calls `worker_init_fn`.
    """

    def start(self) -> None:
        stops = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Fork(ForkContext):
    Process = _Worker


def _end_with_parent(worker: int) -> None:
    """End this worker at a SIGTERM from its parent; a signal handler would not know the sender."""
    wait = threading.Thread(target=_wait_for, args=(os.getppid(),), name="signals", daemon=True)
    wait.start()


def _wait_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
