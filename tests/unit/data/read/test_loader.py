"""Batches: the right tokens, the same global batch for every way to cut it up."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.data.order.blocks import IGNORED, SampleOrder, window_ends
from wikillm.data.read.loader import (
    BatchShape,
    DocumentMask,
    Samples,
    SequenceShard,
    eval_batches,
    eval_loader,
    to_device,
    train_loader,
)
from wikillm.data.read.rows import PADDING


class Counting:
    """Token i is i + 1000: a batch shows where it was read."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.n_tokens, f"read {start}..{stop} of {self.n_tokens}"
        return np.arange(start + 1000, stop + 1000, dtype=np.uint32)


def global_batches(
    tokens: Counting, order: SampleOrder, shapes: list[BatchShape], **kwargs: int
) -> list[torch.Tensor]:
    """Rows of (inputs, targets) of each optimizer step, over all ranks, sorted."""
    loaders = [list(train_loader(tokens, order, shape, **kwargs)) for shape in shapes]
    steps = []
    accumulation = shapes[0].accumulation
    for start in range(0, len(loaders[0]), accumulation):
        parts = [batch for loader in loaders for batch in loader[start : start + accumulation]]
        rows = torch.cat([torch.cat([b["input_ids"], b["shift_labels"]], dim=1) for b in parts])
        steps.append(torch.tensor(sorted(rows.tolist())))
    return steps


def test_inputs_are_the_tokens_before_the_targets_also_over_the_end_of_the_ring() -> None:
    order = SampleOrder(26, 10, seed=0)  # 25 targets, three blocks, the last one short
    batch = Samples(Counting(26), order, 3).batch(list(range(3)))
    assert batch["input_ids"].shape == (3, 10) and batch["input_ids"].dtype == torch.int64
    assert batch["labels"] is batch["shift_labels"]
    real = batch["shift_labels"] != IGNORED
    assert sorted(batch["shift_labels"][real].tolist()) == list(range(1001, 1026))
    assert (batch["shift_labels"][real] - batch["input_ids"][real] == 1).all()


@given(
    st.sampled_from([(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 1, 2), (1, 2, 4)]),
    st.integers(0, 40),
)
@settings(max_examples=30, deadline=None)
def test_every_division_over_ranks_reads_the_same_global_batches(
    cut: tuple[int, int, int], consumed: int
) -> None:
    tokens, order = Counting(777), SampleOrder(777, 10, seed=4)
    micro, accumulation, world = cut
    whole = global_batches(
        tokens, order, [BatchShape(8, 1, 1, 0)], total_steps=5, consumed_samples=consumed
    )
    shapes = [BatchShape(micro, accumulation, world, rank) for rank in range(world)]
    parts = global_batches(tokens, order, shapes, total_steps=5, consumed_samples=consumed)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)
def test_evaluation_reads_every_sample_once_in_equally_many_batches(
    samples: int, micro: int, world: int
) -> None:
    per_rank = [eval_batches(samples, micro, world, rank) for rank in range(world)]
    assert len({len(batches) for batches in per_rank}) == 1
    seen = [n for batches in per_rank for batch in batches for n in batch if n != PADDING]
    assert sorted(seen) == list(range(samples))


def test_evaluation_covers_all_targets_or_the_first_ones() -> None:
    def targets(max_tokens: int | None) -> list[int]:
        loader = eval_loader(
            Counting(95), 10, micro_batch=4, world_size=1, rank=0, max_tokens=max_tokens
        )
        return [t for b in loader for t in b["shift_labels"].flatten().tolist() if t != IGNORED]

    assert targets(None) == list(range(1001, 1095))
    assert targets(25) == list(range(1001, 1031))


def test_huggingface_gives_the_same_loss_as_its_own_shift() -> None:
    """`shift_labels` on T inputs equals HF's internal shift on T+1 tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)
    model = Qwen2ForCausalLM(config).eval()
    tokens = torch.randint(0, 64, (2, 11))
    targets = tokens[:, 1:].contiguous()
    ours = model(input_ids=tokens[:, :-1], labels=targets, shift_labels=targets).loss
    theirs = model(input_ids=tokens, labels=tokens).loss
    torch.testing.assert_close(ours, theirs)


CUTS = [(m, a, 12 // (m * a)) for m in (1, 2, 3, 4, 6, 12) for a in (1, 2, 3) if 12 % (m * a) == 0]


@given(
    shards=st.lists(st.integers(0, 90), min_size=1, max_size=8).filter(lambda s: sum(s) >= 2),
    t=st.integers(2, 16),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_every_token_but_the_first_is_a_target_once_per_epoch_however_it_was_trained(
    shards: list[int], t: int, seed: int, data: st.DataObject
) -> None:
    """Over several attempts, each with its own ranks, micro-batch and accumulation.

    Each is stopped at any step; two epochs are trained, in whole global batches.
    """
    n = sum(shards)
    batch = 12
    order = SampleOrder(n, t, seed, windows=window_ends(shards, data.draw(st.integers(1, 3))))
    first, later = order.blocks_of_first_epoch, order.blocks_per_epoch
    total = -(-(first + later) // batch)
    step = 0
    trained: list[torch.Tensor] = []  # targets in the order of the samples
    while step < total:
        micro, accumulation, world = data.draw(st.sampled_from(CUTS))
        stop = data.draw(st.integers(step + 1, total))
        where = {"total_steps": total, "first_step": step, "consumed_samples": step * batch}
        shapes = [BatchShape(micro, accumulation, world, rank) for rank in range(world)]
        loaders = [iter(train_loader(Counting(n), order, shape, **where)) for shape in shapes]
        # What was fetched ahead and not trained on does not count.
        for _ in range((stop - step) * accumulation):
            trained += [row for loader in loaders for row in next(loader)["shift_labels"]]
        step = stop
    for begin, end in ((0, first), (first, first + later)):
        seen = torch.cat(trained[begin:end])
        assert sorted(seen[seen != IGNORED].tolist()) == list(range(1001, 1000 + n))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_loader_processes_outlive_a_signal_to_the_whole_job(number: int) -> None:
    """Launchers signal all processes; the step under way still needs its batches."""
    order, shape = SampleOrder(1203, 10, 4), BatchShape(2, 1, 1, 0)
    batches = iter(train_loader(Counting(1203), order, shape, total_steps=60, workers=1))
    next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    # Any thread that does not block a signal may get it, also those that torch starts.
    threads = Path(f"/proc/{worker.pid}/task").glob("*/status")
    masks = re.findall(r"SigBlk:\t(\w+)", "".join(thread.read_text() for thread in threads))
    without = [mask for mask in masks if not int(mask, 16) >> (number - 1) & 1]
    assert masks and len(without) <= (number == signal.SIGTERM), "one thread waits for SIGTERM"
    subprocess.run(["sh", "-c", f"kill -{number} {worker.pid}"], check=True)  # not from its parent
    assert len(list(batches)) == 59
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "only the worker's"
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0, "its parent ends it at once"


def test_loader_processes_lose_and_repeat_nothing_when_a_run_is_stopped() -> None:
    """Processes that have fetched ahead: 2 ranks, then 1 with another micro-batch."""
    n, batch, stop = 1203, 8, 7
    order = SampleOrder(n, 10, 4, windows=(400, 800, n))
    total = -(-order.blocks_of_first_epoch // batch)
    trained: list[torch.Tensor] = []
    shapes = [BatchShape(2, 2, 2, rank) for rank in range(2)]
    loaders = [
        iter(train_loader(Counting(n), order, s, total_steps=total, workers=2)) for s in shapes
    ]
    for _ in range(stop * 2):
        trained += [row for loader in loaders for row in next(loader)["shift_labels"]]
    del loaders
    where = {"total_steps": total, "first_step": stop, "consumed_samples": stop * batch}
    rest = train_loader(Counting(n), order, BatchShape(4, 2, 1, 0), **where, workers=3)
    trained += [row for found in rest for row in found["shift_labels"]]
    seen = torch.cat(trained[: order.blocks_of_first_epoch])
    assert len(trained) == total * batch
    assert sorted(seen[seen != IGNORED].tolist()) == list(range(1001, 1000 + n))


@pytest.mark.parametrize("mask", [None, DocumentMask(1050), DocumentMask(1050, with_lengths=True)])
def test_the_shards_of_sequences_make_up_the_batch(mask: DocumentMask | None) -> None:
    """Token 1050 ends a document inside a shard; positions are those of the whole sequence."""
    tokens, order, wanted = Counting(101), SampleOrder(101, 20, seed=5), [0, 3, PADDING]
    whole = Samples(tokens, order, 5, mask).batch(wanted)
    shards = [SequenceShard(4, index) for index in range(4)]
    parts = [Samples(tokens, order, 5, mask, shard).batch(wanted) for shard in shards]
    for name in ("input_ids", "labels", "shift_labels"):
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole[name])
    positions = torch.cat([part["position_ids"] for part in parts], dim=1)
    if mask is None:
        assert torch.equal(positions, torch.arange(20).expand(3, 20))
    else:
        assert torch.equal(positions, whole["position_ids"]) and (positions[:, 1:] == 0).any()
    for part in parts:
        assert part["sequence_parallel"] is True and part["input_ids"].shape == (3, 5)
        assert ("document_positions" in part) is (mask is not None and not mask.with_lengths)
        if mask is not None and mask.with_lengths:  # lengths are of whole sequences
            assert torch.equal(part["cu_seq_lens_q"], whole["cu_seq_lens_q"])


def test_a_batch_is_moved_with_its_labels_copied_once() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids.clone(), "shift_labels": ids, "max_length_q": 3}
    moved = to_device(batch, "meta")
    assert moved["labels"] is moved["shift_labels"] and moved["max_length_q"] == 3
    assert all(moved[name].device.type == "meta" for name in ("input_ids", "labels"))
