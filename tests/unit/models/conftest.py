"""What the tests of compiled models share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def forget_graphs() -> Iterator[None]:
    """No compiled graph of another test is used, and the counters begin at zero."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
