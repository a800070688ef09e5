"""What every test gets: no hub, no terminal assumptions, a corpus that is made on the spot, GPU tests counted as skips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.corpus import write_corpus
from harness.tiny_run import Words, tiny_words
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SWANLAB_MODE", "disabled")
os.environ.setdefault("DS_ACCELERATOR", "cpu" if not os.path.exists("/dev/nvidia0") else "cuda")

# A deadline per example would be a timing assertion.
settings.register_profile("wikillm", deadline=None, print_blob=True)
settings.register_profile(
    "ci", parent=settings.get_profile("wikillm"), derandomize=True
)  # the same examples each time
settings.load_profile("ci" if os.environ.get("CI") else "wikillm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU stay in the count: without one each is a skip with its reason."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON Lines, 300 kB, Chinese and English, learnable (see harness/corpus.py). Read only."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Words:
    """`words(run_dir, "train.x=y", ...)`: the command line of a tiny run; all of them share one token store."""
    return tiny_words(corpus, tmp_path_factory.mktemp("store") / "store")
