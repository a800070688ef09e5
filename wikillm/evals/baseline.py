"""The baseline of every loss: what token frequencies alone reach. Without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unigram_cross_entropy(counts: npt.NDArray[np.integer[Any]]) -> float:
    """Nats per token of the best unigram model of a text: the entropy of its token frequencies.

    No model that ignores context can be below it on this text. `counts`: occurrences of each id.
    """
    present = counts[counts > 0].astype(np.float64)
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())
