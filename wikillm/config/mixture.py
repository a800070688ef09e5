"""Convert the weights of `data.mixture` to counts: the samples of each source in every 4096.

Weights are relative. Weights that are all below 1 are shares and must sum to 1, so that a typing
error is not normalised away. The counts apportion 4096 by the largest-remainder method. A share is
exact to 1/4096, and the rounding error does not grow with the length of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from wikillm.config.origin import Origin, where_of
from wikillm.core.errors import Problems

if TYPE_CHECKING:  # pydantic takes a tenth of a second, and `wikillm audit` needs no schema
    from wikillm.config.schema_data import DataSection, MixtureSource

PERIOD = 4096
_SUM_TOLERANCE = Fraction(1, 10**6)


def counts_of(sources: Sequence[MixtureSource]) -> tuple[int, ...]:
    """Samples of each source in `PERIOD` consecutive samples. Of equal remainders, the earlier
    source's is rounded up."""
    weights = [Fraction(repr(source.weight)) for source in sources]
    exact = [weight * PERIOD / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: PERIOD - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def check_mixture(data: DataSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Add every problem of `data.mixture` itself to `problems`."""
    if not data.mixture:
        return
    place = where_of(origins, "data.mixture")
    before = len(problems)
    for name, count in Counter(source.name for source in data.mixture).items():
        if count > 1:
            what = f"data.mixture has {count} sources named {name}."
            problems.add(what, got=place, fix="a different name for each source")
    for source in data.mixture:
        name = source.name
        if source.weight <= 0:
            problems.add(
                f"The weight of {name} in data.mixture must be above 0.",
                got=f"{source.weight:g} ({place})",
                fix=f"a weight above 0, or leave {name} out",
            )
        if not source.path and source.store is None:
            what = f"The source {name} of data.mixture has neither path nor store."
            problems.add(what, got=place, fix=f"{name}:{source.weight:g}:FILE")
    if len(problems) == before:
        _check_shares(data.mixture, place, problems)


def _check_shares(sources: Sequence[MixtureSource], place: str, problems: Problems) -> None:
    weights = {source.name: Fraction(repr(source.weight)) for source in sources}
    total = sum(weights.values(), Fraction(0))
    shares = {name: float(weight / total) for name, weight in weights.items()}
    is_shares = len(sources) > 1 and all(weight < 1 for weight in weights.values())
    if is_shares and abs(total - 1) > _SUM_TOLERANCE:
        legal = ", ".join(f"{name} {share:.4g}" for name, share in shares.items())
        problems.add(
            f"The weights of data.mixture are all below 1, but sum to {float(total):g}.",
            got=place,
            fix=f"shares that sum to 1 ({legal}), or whole numbers, which are relative",
        )
        return
    for (name, share), count in zip(shares.items(), counts_of(sources), strict=True):
        if count == 0:
            problems.add(
                f"The share of {name} in data.mixture is below 1/{2 * PERIOD}: "
                "this source would never be read.",
                got=f"{share:.3g} ({place})",
                fix=f"leave {name} out, or a share of at least 1/{PERIOD}",
            )
