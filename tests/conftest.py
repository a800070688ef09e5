"""Fixtures and hooks for every test: no Hub access, a generated corpus, and reference runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from harness.corpus import write_corpus
from harness.reference import References
from harness.tiny_run import Words, tiny_words
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SWANLAB_MODE", "disabled")
os.environ.setdefault("DS_ACCELERATOR", "cpu" if not os.path.exists("/dev/nvidia0") else "cuda")

# A deadline per example would be a timing assertion. In CI the examples are always the same.
settings.register_profile("wikillm", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("wikillm"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "wikillm")

# Parallel test processes take whole files. The slow folders go early, to shorten the end, but after
# `contract`: on a new machine the first run of DeepSpeed waits a minute for its compiled op.
FIRST = ("contract", "invariants", "e2e", "dist")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow folders early, and skip tests marked `gpu` where there is no GPU."""
    tests = Path(__file__).parent
    items.sort(key=lambda item: _turn(item.path.relative_to(tests).parts[0]))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def _turn(folder: str) -> int:
    return FIRST.index(folder) if folder in FIRST else len(FIRST)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all test processes of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def corpus(shared: Path) -> Path:
    """300 kB of learnable Chinese and English as JSON Lines (see harness/corpus.py). Read-only."""
    path = shared / "corpus" / "corpus.jsonl"
    with FileLock(shared / "corpus.lock"):
        if not path.exists():
            path.parent.mkdir()
            write_corpus(path)
    return path


@pytest.fixture(scope="session")
def words(shared: Path, corpus: Path) -> Words:
    """`words(run_dir, "train.x=y", ...)`: arguments of a tiny run. All runs share a token store."""
    return tiny_words(corpus, shared / "store" / "store")


@pytest.fixture(scope="session")
def references(shared: Path, words: Words) -> References:
    """Reference runs, each trained once per session (see harness/reference.py). Read-only."""
    folder = shared / "references"
    folder.mkdir(exist_ok=True)
    return References(folder, words)


@pytest.fixture
def warm_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check exports in a fork of the warm server. The README tests use a new process instead."""
    from types import SimpleNamespace

    from harness.proofs import run_warm
    from harness.ranks import start_server

    from wikillm.export import prove

    start_server()  # before a test changes which modules Python can import
    monkeypatch.setattr(prove, "subprocess", SimpleNamespace(run=run_warm))
