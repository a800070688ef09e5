"""The weights of `data.mixture` as whole numbers: how many samples of every 4096 each source gives.

Weights are relative numbers; those that read like shares (all below 1) must sum to 1, so that a
slip is not normalised away. The counts are the largest-remainder apportionment of 4096, so a share
is exact to 1/4096 and a run has no rounding error that grows. Needs no data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from wikillm.config.origin import Origin, where_of
from wikillm.config.schema import DataSection, MixtureSource
from wikillm.core.errors import Problems

PERIOD = 4096
_SUM_TOLERANCE = Fraction(1, 10**6)


def counts_of(sources: Sequence[MixtureSource]) -> tuple[int, ...]:
    """Samples of each source in `PERIOD` consecutive ones. Equal remainders: the earlier source is
    rounded up."""
    weights = [Fraction(repr(source.weight)) for source in sources]
    exact = [weight * PERIOD / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: PERIOD - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def check_mixture(data: DataSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Add everything that is wrong with `data.mixture` to `problems`."""
    if not data.mixture:
        return
    place = where_of(origins, "data.mixture")
    before = len(problems)
    names = Counter(source.name for source in data.mixture)
    for name in (name for name, count in names.items() if count > 1):
        problems.add(
            f"data.mixture has {names[name]} sources named {name}.",
            got=place,
            fix="name each differently",
        )
    for source in data.mixture:
        if source.weight <= 0:
            what = f"The weight of {source.name} in data.mixture is not above 0."
            problems.add(
                what,
                got=f"{source.weight:g} ({place})",
                fix=f"a weight above 0, or leave {source.name} out",
            )
        if not source.path and source.store is None:
            what = f"The source {source.name} of data.mixture has neither path nor store."
            problems.add(what, got=place, fix=f"{source.name}:{source.weight:g}:FILE")
    if len(problems) == before:
        _check_shares(data.mixture, place, problems)


def _check_shares(sources: Sequence[MixtureSource], place: str, problems: Problems) -> None:
    total = sum((Fraction(repr(source.weight)) for source in sources), Fraction(0))
    if len(sources) > 1 and all(s.weight < 1 for s in sources) and abs(total - 1) > _SUM_TOLERANCE:
        shares = ", ".join(
            f"{s.name} {float(Fraction(repr(s.weight)) / total):.4g}" for s in sources
        )
        problems.add(
            f"The weights of data.mixture are shares below 1, and sum to {float(total):g}.",
            got=place,
            fix=f"shares that sum to 1 ({shares}), or whole numbers, which are relative",
        )
        return
    for source, count in zip(sources, counts_of(sources), strict=True):
        if count == 0:
            problems.add(
                f"The share of {source.name} in data.mixture is below 1/{2 * PERIOD}: it would never be read.",
                got=f"{float(Fraction(repr(source.weight)) / total):.3g} ({place})",
                fix=f"leave {source.name} out, or a share of at least 1/{PERIOD}",
            )
