"""Predicts the loss of a large run from small runs with the same settings: L(C) = E + A C^-b.

C is the number of training FLOPs. A few small runs hardly determine the irreducible loss E, so the
interval is that of the profile likelihood (Meeker and Escobar 1995) over E, A and b: for each E the
fit is a straight line, log(L - E) over log C.

It is also not known whether losses follow such a law: on short horizons they fell faster. So the
interval also covers a second form, log L quadratic in log C, whose exponent changes with the size
as it does among the runs. Far beyond the runs the second form is uncertain, and the interval wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError

Array = npt.NDArray[np.float64]
MIN_RUNGS = 3
GRID = 500
"""Number of values of E that are tried, between 0 and the lowest loss."""
CHI_SQUARE_95 = 3.841
"""95 % quantile of chi-square with one degree of freedom: bounds the values of E."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A finished run of the ladder."""

    depth: int
    parameters: int
    tokens: int
    flops: float
    loss: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A loss in nats per token with its 95 % interval, and the fit with the best E."""

    loss: float
    low: float
    high: float
    irreducible: float
    exponent: float


def predict(rungs: Sequence[Rung], flops: float, noise: float) -> Prediction:
    """The loss of a run of `flops`.

    Args:
        rungs: at least three runs of different sizes.
        flops: training FLOPs of the large run.
        noise: standard deviation of a run's loss over seeds, in nats per token; the scatter around
            the fit replaces it if that is larger.

    Raises ConfigError for too few runs, or losses that do not fall with the size.
    """
    if len({rung.flops for rung in rungs}) < MIN_RUNGS:
        raise ConfigError(
            "A prediction needs three sizes or more.",
            got=f"{len(rungs)} finished: depths {', '.join(str(rung.depth) for rung in rungs)}",
            fix="--depths 2 3 4",
        )
    cost = np.log([rung.flops for rung in rungs])
    losses = np.array([rung.loss for rung in rungs])
    if np.polyfit(cost, losses, 1)[0] >= 0:
        raise ConfigError(
            "The losses do not fall with the size, so nothing can be predicted.",
            got=", ".join(f"depth {rung.depth}: {rung.loss:.4f}" for rung in rungs),
            fix="more tokens per run, or sizes that are further apart",
        )
    errors = np.empty(GRID)
    predictions = np.empty(GRID)
    exponents = np.empty(GRID)
    spreads = np.empty(GRID)
    floors = np.linspace(0, losses.min(), GRID, endpoint=False)
    for number, floor in enumerate(floors):
        line = _fit_line(cost, losses, floor, flops)
        errors[number], predictions[number], exponents[number], spreads[number] = line
    best = int(np.argmin(errors))
    # Two parameters of the line and E are fitted; a perfect fit of three runs has no scatter.
    freedom = max(1, len(rungs) - 3)
    variance = max(float(errors[best]) / freedom, noise**2)
    # For each E, the rest of the 95 % covers the line's error and the large run's own noise.
    slack = np.maximum(0, CHI_SQUARE_95 * variance - (errors - errors[best]))
    reach = np.sqrt(slack * (1 + spreads**2))
    is_allowed = slack > 0
    lows = [float((predictions - reach)[is_allowed].min())]
    highs = [float((predictions + reach)[is_allowed].max())]
    # The second form. A larger run is not expected to be worse than the best small run.
    quadratic, spread = _fit_quadratic(cost, losses, flops)
    reach_of_quadratic = math.sqrt(CHI_SQUARE_95 * variance * (1 + spread**2))
    highest = float(losses.min()) + 1.96 * math.sqrt(variance)
    return Prediction(
        loss=float(predictions[best]),
        low=max(0.0, min(*lows, quadratic - reach_of_quadratic)),
        high=min(highest, max(*highs, quadratic + reach_of_quadratic)),
        irreducible=float(floors[best]),
        exponent=float(exponents[best]),
    )


def _fit_line(
    cost: Array, losses: Array, floor: float, flops: float
) -> tuple[float, float, float, float]:
    """(sum of squared errors in nats, predicted loss, exponent, spread) for one irreducible loss.

    The spread is the prediction's standard deviation for a noise of 1 nat per run.
    """
    (slope, start), covariance = _polynomial(cost, losses - floor, 1)
    fitted = floor + np.exp(start + slope * (cost - cost.mean()))
    predicted = floor + math.exp(start + slope * (math.log(flops) - cost.mean()))
    regressors = np.array([math.log(flops) - cost.mean(), 1.0])
    spread = (predicted - floor) * math.sqrt(regressors @ covariance @ regressors)
    return float(((losses - fitted) ** 2).sum()), predicted, float(-slope), spread


def _fit_quadratic(cost: Array, losses: Array, flops: float) -> tuple[float, float]:
    """(predicted loss, its spread) for log L as a quadratic in log C."""
    terms, covariance = _polynomial(cost, losses, 2)
    distance = math.log(flops) - cost.mean()
    regressors = np.array([distance**2, distance, 1.0])
    predicted = math.exp(float(np.clip(regressors @ terms, -50, 50)))
    return predicted, predicted * math.sqrt(regressors @ covariance @ regressors)


def _polynomial(cost: Array, losses: Array, degree: int) -> tuple[Array, Array]:
    """Coefficients of log(losses) as a polynomial in log C less its mean, and their covariance.

    The covariance is for a noise of 1 nat: the noise of log(loss) is that noise / loss.
    """
    distance = cost - cost.mean()
    terms, covariance = np.polyfit(distance, np.log(losses), degree, w=losses, cov="unscaled")
    return terms, covariance
