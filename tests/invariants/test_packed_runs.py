"""Runs on best-fit packed sequences are equal with and without a saved packing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.file_server import serve
from harness.ledgers import assert_proven
from harness.programs import train_on_read_only_store, train_with_options
from harness.ranks import run_ranks

PACKED = ("data.packing=best_fit", "train.document_mask=on", "train.max_steps=3")


def result_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    assert all(result["code"] == 0 for result in results), [result["message"] for result in results]
    return results[0]


@pytest.fixture(scope="module")
def store(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shared store without any saved packing."""
    folder = tmp_path_factory.mktemp("copied")
    (shared,) = (word.partition("=")[2] for word in words(folder) if word.startswith("data.store="))
    if not Path(shared, "manifest.json").exists():
        result_of(run_ranks(train_with_options, 1, words(folder / "first"), {}))
    shutil.copytree(shared, folder / "store", ignore=shutil.ignore_patterns("packed"))
    return folder / "store"


@pytest.fixture(scope="module")
def beside(words: Any, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that saves the packing in the store's folder."""
    folder = tmp_path_factory.mktemp("beside")
    shutil.copytree(store, folder / "store")
    command = words(folder / "run", *PACKED, f"data.store={folder / 'store'}")
    found = result_of(run_ranks(train_with_options, 2, command, {"deepspeed": "zero2"}))
    assert list((folder / "store" / "packed").iterdir())
    assert_proven(folder / "run", 3)
    return found


def test_a_store_behind_an_address(
    words: Any, store: Path, beside: dict[str, Any], tmp_path: Path
) -> None:
    with serve(store.parent) as server:
        command = [
            word
            for word in words(tmp_path / "run", *PACKED)
            if not word.startswith(("data.path", "data.store"))
        ]
        command += [
            "data.path=null",
            f"data.store={server.url}/store",
            f"data.cache={tmp_path / 'cache'}",
        ]
        found = result_of(
            run_ranks(train_with_options, 2, command, {"deepspeed": "zero2"}, NO_PROXY="127.0.0.1")
        )
    assert found["losses"] == beside["losses"] and found["eval"] == beside["eval"]


def can_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs root and mount namespaces")
def test_a_store_that_cannot_be_written(
    words: Any, store: Path, beside: dict[str, Any], tmp_path: Path
) -> None:
    command = words(tmp_path / "run", *PACKED, f"data.store={store}")
    found = result_of(
        run_ranks(train_on_read_only_store, 2, command, {"deepspeed": "zero2"}, str(store))
    )
    assert found["losses"] == beside["losses"] and found["eval"] == beside["eval"]
    assert not (store / "packed").exists()
