"""The loss of a large run is predicted from small runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wikillm.cli.main import main
from wikillm.config.size_laws import layer_parameters
from wikillm.core.errors import ConfigError
from wikillm.observe.redact import redact_argument
from wikillm.plan.ladder import Rung, predict


def rungs(losses: dict[float, float]) -> list[Rung]:
    return [Rung(number, 0, 0, flops, loss) for number, (flops, loss) in enumerate(losses.items())]


def law(flops: float) -> float:
    return float(1.7 + 400 * flops**-0.15)


def test_an_exact_law_is_found() -> None:
    found = predict(rungs({c: law(c) for c in (1e14, 1e15, 1e16, 1e17)}), 1e20, noise=1e-4)
    assert found.loss == pytest.approx(law(1e20), abs=0.01)
    assert found.irreducible == pytest.approx(1.7, abs=0.02)
    assert found.exponent == pytest.approx(0.15, abs=0.005)


def test_the_interval_covers_the_true_loss_in_about_95_percent() -> None:
    generator = np.random.default_rng(7)
    costs = (1e14, 5e14, 3e15, 2e16, 1e17)
    covered = 0
    for _ in range(60):
        noisy = {c: law(c) + generator.normal(0, 0.01) for c in costs}
        found = predict(rungs(noisy), 1e18, noise=0.01)
        covered += found.low <= law(1e18) <= found.high
    assert covered >= 54


MEASURED = {
    1.69e11: (6.584, 6.544, 6.545),
    1.35e12: (6.026, 6.043, 6.022),
    6.23e12: (5.648, 5.584, 5.659),
}
"""By FLOPs: depths 1 to 3 in docs/measurements/2026-11-28-speedrun.md, three seeds each."""


@pytest.mark.parametrize("seed", range(3))
def test_losses_that_fall_faster_than_any_power_law_are_covered(seed: int) -> None:
    """Depth 4 was at 5.193 and 5.195, and outside of 5.292 to 5.394."""
    small = rungs({flops: losses[seed] for flops, losses in MEASURED.items()})
    found = predict(small, 2.64e13, noise=0.025)
    assert found.low < 5.193 < found.high < 5.65  # below the best of the small runs
    assert found.high - found.low < 0.9


def test_too_few_sizes_and_rising_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match="three sizes"):
        predict(rungs({1e14: 5.0, 1e15: 4.0}), 1e18, noise=0.01)
    with pytest.raises(ConfigError, match="do not fall"):
        predict(rungs({1e14: 4.0, 1e15: 4.1, 1e16: 4.2}), 1e18, noise=0.01)


def test_finished_runs_are_read_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.path=https://host/never-read.jsonl?download=true", "data.tokenizer=train:4096"]
    for depth, loss in ((2, 6.0), (3, 5.5), (4, 5.1), (5, 4.8)):
        folder = tmp_path / f"depth-{depth}"
        folder.mkdir()
        (folder / "exit.json").write_text('{"code": 0}')
        tokens = 2 * (layer_parameters(depth) + 4096 * 64 * depth)
        sizes = [f"model.depth={depth}", f"train.max_tokens={tokens}", f"run.dir={folder}"]
        recorded = map(redact_argument, [*words, *sizes, "--resume", "auto"])  # as in run_dir
        started = {"command": ["train.py", *recorded]}
        (folder / "environment.json").write_text(json.dumps(started))
        event = {"kind": "eval", "step": 9, "eval_loss": loss, "time": 1.0}
        (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    depths = ["--depths", "2", "3", "4", "5", "--predict", "8", "--tokens-per-parameter", "2"]
    ladder = ["ladder", *depths, "--folder", str(tmp_path), "--json"]
    code = main([*ladder, *words])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["prediction"]["low"] < found["prediction"]["loss"] < 4.8
    assert found["largest_from_the_others"]["loss"] == pytest.approx(4.8, abs=0.15)
    smallest = found["runs"][0]
    # 2 x (layers + embedding): a quarter of the layers' matrices is exact in test_size_laws.
    assert smallest["tokens"] == 2 * smallest["parameters"] - 2 * (2 * 2 * 128 + 2 * 256 + 128)
    # A finished run of other data or another rate is not read for the new settings.
    assert main([*ladder, "data.path=other.jsonl", words[1], "train.learning_rate=0.5"]) == 2
    error = capsys.readouterr().err
    assert "finished run with other settings" in error and "train.learning_rate=0.5" in error


def test_too_few_depths_and_a_small_target_are_refused_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["ladder", "--depths", "2", "3", "--predict", "9"]) == 2
    assert "three sizes" in capsys.readouterr().err
    assert main(["ladder", "--depths", "2", "3", "4", "--predict", "3"]) == 2
    assert "greater than every trained depth" in capsys.readouterr().err
