"""From sample indices to batches: the one place where samples are shared out over ranks and micro-steps.

A global batch is G consecutive samples of the order. Micro-step a of rank r of W takes the samples
[a*W*m + r*m, a*W*m + (r+1)*m) of it, m being the micro-batch, so every (W, m, accumulation) with the same
product reads the same global batch. Loader workers are stateless: they are handed indices.

A batch is {"input_ids", "labels", "shift_labels"}, int64, each B x T. Inputs are exactly T tokens. The targets
are already shifted, so models must be told with `shift_labels`; `labels` repeats them only because Hugging
Face's models compute a loss when it is present. With a `DocumentMask` there are also `position_ids`, B x T, that begin
at 0 with each document (see read.document_mask), and for flash attention its `cu_seq_lens`. This is the only module of the room that imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from wikillm.config.batch_ramp import BatchRamp
from wikillm.core.errors import WikiLLMError
from wikillm.data.order.blocks import IGNORED, SampleOrder, TargetRanges
from wikillm.data.read.corpus import Order, Tokens
from wikillm.data.read.document_mask import cumulative_lengths, document_positions

PADDING = -1  # a sample index that stands for "nothing": all its labels are ignored


Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How a global batch is cut up. Sizes in sequences; `accumulation` is that of a full batch, earlier ones by `ramp`.

    Ranks that share sequences count as one: `world_size` is the number of groups then, `rank` that of this rank's group.
    """

    micro_batch: int
    accumulation: int
    world_size: int
    rank: int
    ramp: BatchRamp | None = None

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    def global_batch_at(self, step: int) -> int:
        """Sequences of optimizer step `step` (from 0) over all ranks."""
        return self._batches.sequences_at(step)

    def accumulation_at(self, step: int) -> int:
        """Micro-steps of optimizer step `step` (from 0)."""
        return self.global_batch_at(step) // (self.micro_batch * self.world_size)

    def samples_between(self, first_step: int, stop_step: int) -> int:
        """Samples that the optimizer steps [first_step, stop_step) use up."""
        return self._batches.sequences_before(stop_step) - self._batches.sequences_before(
            first_step
        )

    @property
    def _batches(self) -> BatchRamp:
        return self.ramp or BatchRamp(self.global_batch)


@dataclass(frozen=True, slots=True)
class DocumentMask:
    """Attention stays within documents. `with_lengths`: for flash attention, which wants them as cumulative lengths."""

    eos_id: int
    with_lengths: bool = False


@dataclass(frozen=True, slots=True)
class SequenceShard:
    """The part of each sequence that a rank holds: the `index`-th of `size` equal ones."""

    size: int
    index: int

    def of(self, batch: Batch) -> Batch:
        """This part of a batch: B x T/size each, with `position_ids` in any case.

        `sequence_parallel` tells the model so. What attention needs of whole sequences stays whole: flash attention's
        lengths, and for other kernels `document_positions`, the B x T positions within documents.
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
    """The mask that `train.document_mask` asks for, for a model with Hugging Face's attention implementation `attention`."""
    if setting == "off":
        return None
    return DocumentMask(eos_id, with_lengths=attention.startswith("flash_attention"))


class Samples(Dataset[Batch]):
    """Samples of a stream by index; asked for many at a time, it answers with a batch."""

    def __init__(
        self,
        tokens: Tokens,
        order: Order,
        length: int,
        mask: DocumentMask | None = None,
        shard: SequenceShard | None = None,
    ) -> None:
        self.tokens = tokens
        self.order = order
        self.length = length
        self.mask = mask
        self.shard = shard

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Batch | WikiLLMError:
        """The batch of these samples, B x T each or this rank's part; `PADDING` gives a row without targets.

        A loader process answers with the error instead: torch would wrap it in a text with its traceback.
        """
        if get_worker_info() is None:
            return self.batch(indices)
        try:
            return self.batch(indices)
        except WikiLLMError as error:
            return error

    def batch(self, indices: Sequence[int]) -> Batch:
        whole = self._whole(indices)
        return whole if self.shard is None else self.shard.of(whole)

    def _whole(self, indices: Sequence[int]) -> Batch:
        wanted = np.asarray(indices, dtype=np.int64)
        shape = (len(wanted), self.order.sequence_length)
        inputs = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        joins: list[tuple[int, int]] = []
        for row, (sample, ranges) in enumerate(
            zip(wanted, self.order.target_ranges(np.maximum(wanted, 0)), strict=True)
        ):
            if sample != PADDING:
                self._fill(inputs[row], targets[row], ranges)
                ends = accumulate(stop - start for start, stop in ranges[:-1])
                joins += [(row, column) for column in ends]
        labels = torch.from_numpy(targets)
        batch: Batch = {
            "input_ids": torch.from_numpy(inputs),
            "labels": labels,
            "shift_labels": labels,
        }
        if self.mask is None:
            return batch
        positions = document_positions(inputs, self.mask.eos_id, joins)
        batch["position_ids"] = torch.from_numpy(positions)
        if self.mask.with_lengths:
            bounds, longest = cumulative_lengths(positions)
            batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = torch.from_numpy(bounds)
            batch["max_length_q"] = batch["max_length_k"] = longest
        return batch

    def _fill(
        self,
        inputs: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        ranges: TargetRanges,
    ) -> None:
        """Copy these ranges of targets, one after the other, and the token before each target."""
        done = 0
        for start, stop in ranges:
            tokens, after = self.tokens.read(start, stop + 1), done + stop - start
            inputs[done:after] = tokens[:-1]
            targets[done:after] = tokens[1:]
            done = after


class GlobalBatches(Sampler[list[int]]):
    """Sample indices of this rank's micro-batches, from `consumed_samples` on, for `steps` optimizer steps.

    `len()` counts the optimizer steps of the whole run, also those before `first_step`: Hugging Face's Trainer derives
    its epochs from it, of which a run has one, and is given the micro-batches of a step as one (see train.trainer).
    """

    def __init__(
        self, shape: BatchShape, total_steps: int, consumed_samples: int, first_step: int
    ) -> None:
        self.shape, self.total_steps = shape, total_steps
        self.consumed_samples, self.first_step = consumed_samples, first_step

    def __len__(self) -> int:
        return self.total_steps

    def __iter__(self) -> Iterator[list[int]]:
        shape = self.shape
        for step in range(self.first_step, self.total_steps):
            base = self.consumed_samples + shape.samples_between(self.first_step, step)
            for micro_step in range(shape.accumulation_at(step)):
                first = base + (micro_step * shape.world_size + shape.rank) * shape.micro_batch
                yield list(range(first, first + shape.micro_batch))


class EvalBatches(Sampler[list[int]]):
    """Every sample of [0, samples) once over all ranks, front to back; every rank gets equally many batches.

    ZeRO-3 gathers weights in every forward, so a rank that ran out would leave the others waiting: rows of
    `PADDING` fill up.
    """

    def __init__(self, samples: int, micro_batch: int, world_size: int, rank: int) -> None:
        self.samples, self.micro_batch, self.world_size, self.rank = (
            samples,
            micro_batch,
            world_size,
            rank,
        )

    def __len__(self) -> int:
        return -(-self.samples // (self.micro_batch * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            first = (batch * self.world_size + self.rank) * self.micro_batch
            yield [
                n if n < self.samples else PADDING for n in range(first, first + self.micro_batch)
            ]


def as_is(batch: Any) -> Any:
    """`Samples` answers with whole batches, so there is nothing to collate."""
    return batch


def train_loader(
    tokens: Tokens,
    order: Order,
    shape: BatchShape,
    *,
    total_steps: int,
    first_step: int = 0,
    consumed_samples: int = 0,
    workers: int = 0,
    mask: DocumentMask | None = None,
    shard: SequenceShard | None = None,
) -> DataLoader[Any]:
    """Batches of this rank from optimizer step `first_step` (samples before `consumed_samples` are done) to the end."""
    samples = Samples(tokens, order, shape.samples_between(0, total_steps), mask, shard)
    batches = GlobalBatches(shape, total_steps, consumed_samples, first_step)
    return DataLoader(
        samples, batch_sampler=batches, collate_fn=as_is, num_workers=workers, **_options(workers)
    )


def eval_loader(
    tokens: Tokens,
    sequence_length: int,
    *,
    micro_batch: int,
    world_size: int,
    rank: int,
    max_tokens: int | None = None,
    mask: DocumentMask | None = None,
    shard: SequenceShard | None = None,
) -> DataLoader[Any]:
    """Batches of this rank over the stream, or over its first `max_tokens` targets rounded up to a sequence."""
    order = SampleOrder(tokens.n_tokens, sequence_length, seed=0, shuffle=False)
    count = order.blocks_per_epoch
    if max_tokens is not None:
        count = min(count, -(-max_tokens // sequence_length))
    batches = EvalBatches(count, micro_batch, world_size, rank)
    samples = Samples(tokens, order, count, mask, shard)
    return DataLoader(samples, batch_sampler=batches, collate_fn=as_is, **_options(0))


def to_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The batch on `device`, without waiting for the copies; `labels` repeat `shift_labels` and are not copied again.

    Pinned memory (a loader's on a GPU machine) may be reused by its owner only when the copies are done; torch's allocator sees to that.
    """
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels" or "shift_labels" not in batch
    }
    return moved | (
        {"labels": moved["shift_labels"]} if "labels" in batch and "shift_labels" in batch else {}
    )


def _options(workers: int) -> dict[str, Any]:
    options: dict[str, Any] = {"pin_memory": torch.cuda.is_available()}
    if workers:
        # fork, Linux's usual way, also where the process itself came from a fork server: torch looks at a loader process's
        # parent to notice that the training was killed, and a fork server outlives it.
        options |= {
            "prefetch_factor": 4,
            "persistent_workers": True,
            "multiprocessing_context": "fork",
        }
        options["worker_init_fn"] = _outlive_a_stop
    return options


def _outlive_a_stop(worker: int) -> None:
    """Launchers signal the whole process tree; the training process still ends its step and saves, and ends its workers then.

    torch's own handler ends a worker, and the training with it, at any SIGTERM; here only the parent's SIGTERM does.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a handler does not see the sender
    threading.Thread(
        target=_end_at_the_word_of, args=(os.getppid(),), name="signals", daemon=True
    ).start()


def _end_at_the_word_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
