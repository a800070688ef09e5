"""Runs with a loss that goes wrong in chosen micro-batches, injected from outside the code."""

from __future__ import annotations

import time
from typing import Any

from harness.programs import train
from harness.stops import train_and_ask


def scale_losses(factors: dict[tuple[int, int, int], float]) -> None:
    """Multiply the loss of (step from 0, rank, micro-step), before its backward pass.

    -1 for the rank or the micro-step means every one.
    """
    from wikillm.train.trainer import WikiTrainer

    original = WikiTrainer.compute_loss
    counted: dict[int, int] = {}

    def compute_loss(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        step = self.state.global_step
        micro_step = counted.get(step, 0)
        counted[step] = micro_step + 1
        rank = self.context.world.rank
        loss = original(self, *args, **kwargs)
        for (at, on_rank, on_micro), factor in factors.items():
            if at == step and on_rank in (rank, -1) and on_micro in (micro_step, -1):
                loss = loss * factor
        return loss

    WikiTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def train_with_losses(
    words: list[str], factors: dict[tuple[int, int, int], float], options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train` with `scale_losses`. The option `save_seconds` slows down every save."""
    scale_losses(factors)
    slow_down_saves(options.pop("save_seconds", 0.0))
    return train(words, **options)


def flip_bit(step: int, rank: int, bit: int) -> None:
    """Flip one bit of a weight of `rank` after the update of `step` (from 1)."""
    import torch
    from transformers.trainer_callback import CallbackHandler

    original = CallbackHandler.on_step_end

    def on_step_end(self: CallbackHandler, args: Any, state: Any, control: Any) -> Any:
        if state.global_step == step and args.process_index == rank:
            weight = dict(self.model.named_parameters())["model.layers.1.mlp.down_proj.weight"]
            words = weight.detach().view(-1).view(torch.int32)
            words[100] ^= 1 << bit
        return original(self, args, state, control)

    CallbackHandler.on_step_end = on_step_end  # type: ignore[method-assign]


def train_with_a_flipped_bit(
    words: list[str], where: tuple[int, int, int], options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train` with `flip_bit` of (step, rank, bit)."""
    flip_bit(*where)
    return train(words, **options)


def flip_a_bit_and_stop_in_evaluation(
    words: list[str], where: tuple[int, int, int], options: dict[str, Any]
) -> dict[str, Any]:
    """`train_with_a_flipped_bit`, with a stop that rank 0 requests in the first evaluation."""
    flip_bit(*where)
    return train_and_ask(words, "evaluate", "signal", 0, options)


def scale_losses_of_samples(windows: list[tuple[int, int]], factor: float) -> dict[int, list[str]]:
    """Multiply the loss of every step whose batch begins in one of the windows [first, stop).

    Returns what each step (from 0) of this rank read, filled in while training: a later reading
    replaces an earlier one.
    """
    import hashlib

    from wikillm.train.trainer import WikiTrainer

    compute_loss = WikiTrainer.compute_loss
    training_step = WikiTrainer.training_step
    read: dict[int, list[str]] = {}

    def scaled(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, *args, **kwargs)
        first = self.samples.of(self.state.global_step).start
        return loss * factor if any(a <= first < b for a, b in windows) else loss

    def noting(self: WikiTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [row for batch in inputs for row in batch["input_ids"]]
        step = self.state.global_step
        read[step] = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows]
        return training_step(self, model, inputs, *args, **kwargs)

    WikiTrainer.compute_loss = scaled  # type: ignore[method-assign]
    WikiTrainer.training_step = noting  # type: ignore[method-assign]
    return read


def train_with_bad_samples(
    words: list[str], windows: list[tuple[int, int]], factor: float, options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train` with `scale_losses_of_samples`.

    The option `save_seconds` slows down every save.

    `alive`: the largest number of earlier models in memory while another one was being built.
    `phases`: the heartbeat's phases in which a checkpoint was verified or samples were awaited.
    """
    import weakref

    from wikillm.train import run

    built: list[weakref.ref[Any]] = []
    alive = [0]
    build_model = run.build_model

    def noting(*args: Any, **kwargs: Any) -> Any:
        alive.append(sum(each() is not None for each in built))
        model = build_model(*args, **kwargs)
        built.append(weakref.ref(model))
        return model

    run.build_model = noting
    slow_down_saves(options.pop("save_seconds", 0.0))
    phases = note_phases()
    read = scale_losses_of_samples(windows, factor)
    result = train(words, **options)
    return result | {"read": read, "alive": max(alive), "built": len(built), "phases": phases}


def note_phases() -> dict[str, set[str]]:
    """The phases in which this rank verifies checkpoints and waits for samples, filled in later."""
    from wikillm.supervise.heartbeat import Heartbeat
    from wikillm.train import run
    from wikillm.train.wait_for_data import DataWaiter

    enter = Heartbeat.enter
    agree = run.agree_on_resume_point
    wait_for = DataWaiter.wait_for
    now = ""
    found: dict[str, set[str]] = {"verify": set(), "wait": set()}

    def noting_enter(self: Heartbeat, phase: str) -> None:
        nonlocal now
        now = phase
        enter(self, phase)

    def noting_agree(*args: Any) -> Any:
        found["verify"].add(now)
        return agree(*args)

    def noting_wait(self: DataWaiter, stop: int) -> None:
        found["wait"].add(now)
        wait_for(self, stop)

    Heartbeat.enter = noting_enter  # type: ignore[method-assign]
    DataWaiter.wait_for = noting_wait  # type: ignore[method-assign]
    run.agree_on_resume_point = noting_agree
    return found


def slow_down_saves(seconds: float) -> None:
    """Let this rank's part of every save take `seconds` longer."""
    from wikillm.train import saver

    write_part = saver.write_part

    def slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return write_part(*args)

    saver.write_part = slowly


def train_with_slow_saves(words: list[str], seconds: float) -> dict[str, Any]:
    """Run `train` with `slow_down_saves`."""
    slow_down_saves(seconds)
    return train(words)


def train_with_wrong_parts(words: list[str], part: str) -> dict[str, Any]:
    """Run `train` with a schedule of half the rate, or with a model whose rows see each other."""
    from transformers import Qwen2Model

    from wikillm.train.trainer import WikiTrainer

    if part == "rate":
        create = WikiTrainer.create_scheduler

        def halved(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
            schedule = create(self, *args, **kwargs)
            schedule.base_lrs = [rate / 2 for rate in schedule.base_lrs]
            return schedule

        WikiTrainer.create_scheduler = halved  # type: ignore[method-assign]
    else:
        forward = Qwen2Model.forward

        def mixed(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = forward(self, *args, **kwargs)
            states = out.last_hidden_state
            out.last_hidden_state = states + 5 * states.roll(1, dims=0)
            return out

        Qwen2Model.forward = mixed
    return train(words)
