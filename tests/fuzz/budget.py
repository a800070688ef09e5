"""How many inputs are tried: the same few on every commit, as many new ones as there is time in `make fuzz`.

WIKILLM_FUZZ multiplies the number of examples, and makes them other ones each time; without it they are always the same.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings

FACTOR = int(os.environ.get("WIKILLM_FUZZ", "0"))


def fuzzed(examples: int) -> Any:
    """Settings for a test that is to see so many inputs on a commit."""
    return settings(
        max_examples=examples * max(1, FACTOR),
        derandomize=not FACTOR,
        database=None if not FACTOR else settings.default.database,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )
