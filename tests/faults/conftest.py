"""The lab of these tests: one folder, one token store and the oracles of a test process."""

from __future__ import annotations

import pytest

from faults.lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"))
