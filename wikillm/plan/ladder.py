"""The loss of a large run from small ones trained by the same laws: L(C) = E + A C^-b.

C are the training FLOPs. The irreducible loss E is hardly determined by a few small runs, so the
interval is taken over every E that the losses allow (the profile likelihood, Meeker and Escobar
1995): for each E the rest is a straight line, log(L - E) over log C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError

Array = npt.NDArray[np.float64]
FEWEST = 3
GRID = 2000
"""Values of E that are tried, between 0 and the lowest loss."""
CHI_SQUARE_95 = 3.841
"""Of one degree of freedom: the E that an interval of 95 % allows."""


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
    """A loss in nats per token with its interval of 95 %, and the fit at its best E."""

    loss: float
    low: float
    high: float
    irreducible: float
    exponent: float


def predict(rungs: Sequence[Rung], flops: float, noise: float) -> Prediction:
    """The loss of a run of `flops`.

    Args:
        rungs: three or more, of different sizes.
        noise: standard deviation of a run's loss over seeds, in nats per token; the scatter around
            the fit replaces it where that is larger.

    Raises ConfigError for too few runs, or losses that do not fall with the size.
    """
    if len({rung.flops for rung in rungs}) < FEWEST:
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
    found = np.empty(GRID)
    exponents = np.empty(GRID)
    floors = np.linspace(0, losses.min(), GRID, endpoint=False)
    for number, floor in enumerate(floors):
        errors[number], found[number], exponents[number] = _line(cost, losses, floor, flops)
    best = int(np.argmin(errors))
    # Two parameters of the line and E are fitted; a perfect fit of three runs has no scatter.
    freedom = max(1, len(rungs) - 3)
    variance = max(float(errors[best]) / freedom, noise**2)
    allowed = found[errors - errors[best] <= CHI_SQUARE_95 * variance]
    margin = 1.96 * math.sqrt(variance)
    return Prediction(
        loss=float(found[best]),
        low=float(allowed.min()) - margin,
        high=float(allowed.max()) + margin,
        irreducible=float(floors[best]),
        exponent=float(exponents[best]),
    )


def _line(cost: Array, losses: Array, floor: float, flops: float) -> tuple[float, float, float]:
    """(sum of squared errors in nats, predicted loss, exponent) for one irreducible loss."""
    slope, start = np.polyfit(cost, np.log(losses - floor), 1, w=losses - floor)
    fitted = floor + np.exp(start + slope * cost)
    predicted = floor + math.exp(start + slope * math.log(flops))
    return float(((losses - fitted) ** 2).sum()), predicted, float(-slope)
