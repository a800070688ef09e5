"""A spike is found at once; noise, a warm-up and a growing batch give none."""

from __future__ import annotations

import random

import pytest

from wikillm.train.spikes import SpikeDetector


def spikes(losses: list[float], window: int = 128, threshold: float = 8.0) -> list[int]:
    detector = SpikeDetector(window, threshold)
    return [step for step, loss in enumerate(losses) if detector.judge(step, loss)]


def curve(steps: int, seed: int, batch_at: int = 10**9, heavy: bool = False) -> list[float]:
    """A falling loss with noise, which halves where the batch grows fourfold at `batch_at`."""
    draw = random.Random(seed)
    found = []
    for step in range(steps):
        mean = 2.5 + 8.5 * (1 + step / 20) ** -0.7
        noise = 0.03 * (0.5 if step >= batch_at else 1.0)
        jump = 4 * noise if heavy and draw.random() < 0.01 else 0.0
        found.append(mean + draw.gauss(0, noise) + jump)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("batch_at", [300, 10**9])
def test_a_run_without_spikes_has_none(seed: int, heavy: bool, batch_at: int) -> None:
    assert not spikes(curve(4000, seed, batch_at, heavy))


@pytest.mark.parametrize(("at", "size"), [(40, 30.0), (500, 1.5), (3000, 0.6)])
@pytest.mark.parametrize("length", [1, 5, 50])
def test_a_spike_is_found_in_every_step(at: int, size: float, length: int) -> None:
    losses = curve(4000, 1)
    for step in range(at, at + length):
        losses[step] += size
    assert spikes(losses) == list(range(at, at + length))


def test_a_falling_loss_is_no_spike() -> None:
    losses = curve(1000, 1)
    assert not spikes([loss if step < 500 else loss / 10 for step, loss in enumerate(losses)])


def test_a_new_level_is_accepted_after_a_window() -> None:
    losses = [2.0 + 0.01 * (step % 5) + (1.0 if step >= 100 else 0.0) for step in range(400)]
    assert spikes(losses, window=32) == list(range(100, 132))


def test_recent_losses_from_a_checkpoint_give_the_same_spikes() -> None:
    losses = curve(600, 3)
    losses[400] += 2
    whole = SpikeDetector(64, 8.0)
    found = [whole.judge(step, loss) for step, loss in enumerate(losses)]
    first = SpikeDetector(64, 8.0)
    for step in range(395):
        first.judge(step, losses[step])
    second = SpikeDetector(64, 8.0, list(first.recent))
    assert [second.judge(step, losses[step]) for step in range(395, 600)] == found[395:]
    assert found[400] is not None
