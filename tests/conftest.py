"""What every test gets: no hub, a corpus made on the spot, runs to compare with; GPU tests are counted as skips."""

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

# A deadline per example would be a timing assertion. In CI the examples are the same each time.
settings.register_profile("wikillm", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("wikillm"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "wikillm")

# With several test processes a file is the unit of work: the longest first, so that the last ones are short.
SLOW_FIRST = ("invariants", "e2e", "dist")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the folders by their length; tests that need a GPU are skips with that reason where there is none."""
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
    return SLOW_FIRST.index(folder) if folder in SLOW_FIRST else len(SLOW_FIRST)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this session have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def corpus(shared: Path) -> Path:
    """JSON Lines, 300 kB, Chinese and English, learnable (see harness/corpus.py). Read only."""
    path = shared / "corpus" / "corpus.jsonl"
    with FileLock(shared / "corpus.lock"):
        if not path.exists():
            path.parent.mkdir()
            write_corpus(path)
    return path


@pytest.fixture(scope="session")
def words(shared: Path, corpus: Path) -> Words:
    """`words(run_dir, "train.x=y", ...)`: the command line of a tiny run; all of them share one token store."""
    return tiny_words(corpus, shared / "store" / "store")


@pytest.fixture(scope="session")
def references(shared: Path, words: Words) -> References:
    """Runs to compare with, each trained once per session (see harness/reference.py). Read only."""
    folder = shared / "references"
    folder.mkdir(exist_ok=True)
    return References(folder, words)


@pytest.fixture
def warm_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are proved in a fork of the warm server (see harness/proofs.py). README's commands do it for real."""
    from types import SimpleNamespace

    from harness.proofs import run_warm
    from harness.ranks import start_server

    from wikillm.export import prove

    start_server()  # before a test changes what Python imports
    monkeypatch.setattr(prove, "subprocess", SimpleNamespace(run=run_warm))
