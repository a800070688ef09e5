"""The baseline beside every loss: what token frequencies alone can do. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unigram_cross_entropy(counts: npt.NDArray[np.integer[Any]]) -> float:
    """Nats per token of the best possible unigram model of a text: the entropy of its own token frequencies.

    No model that ignores context can be below it on this text, whatever it was trained on.

    Args:
        counts: occurrences of each token id in the text.
    """
    present = counts[counts > 0].astype(np.float64)
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())
