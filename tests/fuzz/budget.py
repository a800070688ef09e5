"""The number of fuzzing examples: a fixed set on every commit, more and new ones in `make fuzz`.

WIKILLM_FUZZ multiplies the number of examples and uses new random ones each time. Without it the
examples are always the same.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings

FACTOR = int(os.environ.get("WIKILLM_FUZZ", "0"))


def fuzzed(examples: int) -> Any:
    """Hypothesis settings for a test that tries `examples` inputs on each commit.

    All tests together try at least 3,000 (`test_settings_and_messages.py` counts them).
    """
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
