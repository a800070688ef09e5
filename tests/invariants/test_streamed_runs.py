"""Training on a store that is still being built equals a finished one. A failure gives its reason.

The corpus has several windows, so the runs start before the store is finished. Both runs are
compared bit by bit (L1).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.corpus import write_corpus
from harness.ledgers import assert_proven
from harness.programs import tensor_digest, train_with_options
from harness.ranks import run_ranks
from harness.reference import References
from harness.tiny_run import Words, tiny_words

STREAMING = (
    "data.streaming=on",
    "data.window_shards=2",
    "data.shard_bytes=40000",
    "data.min_val_tokens=100",
)
LARGE_MICRO_BATCH = "train.per_device_train_batch_size=32"


def run(world: int, words: list[str], **options: Any) -> dict[str, Any]:
    """The result of rank 0. All ranks must end with the same code and the same reason."""
    results = run_ranks(train_with_options, world, words, options)
    assert len({r["code"] for r in results}) == 1, [r["message"] for r in results]
    assert results[0]["code"] != 4 or len({r["message"] for r in results}) == 1, [
        r["message"] for r in results
    ]
    return dict(results[0])


@contextmanager
def slow_builder(store: Path, until: Path) -> Iterator[None]:
    """Slow down the builder of `store` from its first shard until `until` exists."""
    ended = threading.Event()

    def hold_back() -> None:
        pid = None
        while not ended.wait(0.005) and not until.exists():
            if (store / "tokenizer" / "tokenizer.json").exists() and not (
                store / "manifest.json"
            ).exists():
                pid = json.loads(store.with_name(f".{store.name}.lock").read_text())["pid"]
                os.kill(pid, signal.SIGSTOP)
                ended.wait(0.05)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hold_back)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 MB, about fifty windows, more than any of these runs reads."""
    return write_corpus(tmp_path_factory.mktemp("large") / "corpus.jsonl", size=4_000_000)


@pytest.fixture(scope="module")
def tokenizer(references: References) -> str:
    """The word for a trained tokenizer: training one on `large` takes longer than the runs."""
    return f"data.tokenizer={references(1, deepspeed='zero1')['folder'] / 'tokenizer'}"


def words_on(corpus: Path, folder: Path) -> Words:
    return tiny_words(corpus, folder / "store")


@pytest.mark.parametrize("recipe", [pytest.param(None, marks=pytest.mark.deep), "zero2"])
def test_streamed_equals_prepared_and_goes_on_into_the_second_epoch(
    recipe: str | None, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", size=160_000)
    more = (
        *STREAMING,
        LARGE_MICRO_BATCH,
        "train.max_steps=14",
        "train.global_batch_tokens=8192",
        "train.eval_steps=7",
    )
    more = (*more, "data.packing=best_fit" if recipe else "data.packing=concat")
    with slow_builder(tmp_path / "a" / "store", until=tmp_path / "streamed" / "plan.json"):
        streamed = run(
            2, words_on(corpus, tmp_path / "a")(tmp_path / "streamed", *more), deepspeed=recipe
        )
    assert streamed["code"] == 0, streamed["message"]
    assert "the corpus is still being counted" in streamed["output"], (
        "it was finished before training began"
    )
    assert "training starts on the first 2 shards" in streamed["output"]
    store = json.loads((tmp_path / "streamed" / "data.json").read_text())
    # More than an epoch.
    assert store["complete"] and store["splits"]["train"]["tokens"] < 14 * 8192
    # Now the store is finished.
    words = words_on(corpus, tmp_path / "a")(tmp_path / "prepared", *more)
    prepared = run(2, words, deepspeed=recipe)
    assert "the corpus is still being counted" not in prepared["output"]
    off = run(
        2,
        words_on(corpus, tmp_path / "a")(tmp_path / "off", *more, "data.streaming=off"),
        deepspeed=recipe,
    )
    assert (
        streamed["losses"] == prepared["losses"] == off["losses"] and len(streamed["losses"]) == 14
    )
    assert_proven(tmp_path / "streamed", 14)
    assert streamed["eval"] == prepared["eval"] and len(streamed["eval"]) == 2
    assert (
        len(
            {
                tensor_digest(tmp_path / n / "checkpoints" / "checkpoint-14")
                for n in ("streamed", "prepared")
            }
        )
        == 1
    )


def test_a_stopped_and_resumed_streamed_run_is_bit_identical(
    large: Path, tokenizer: str, tmp_path: Path
) -> None:
    more = (
        *STREAMING,
        tokenizer,
        LARGE_MICRO_BATCH,
        "train.max_steps=12",
        "train.global_batch_tokens=4096",
    )
    whole = run(2, words_on(large, tmp_path / "a")(tmp_path / "whole", *more))
    assert whole["code"] == 0, whole["message"]
    words = words_on(large, tmp_path / "b")(
        tmp_path / "parts", *more, "train.dataloader_num_workers=1"
    )
    stopped = run(2, words, signal_at=5, signal_rank=1)
    assert stopped["code"] == 75, stopped["message"]
    store = tmp_path / "b" / "store"
    # A shard without its record is built again.
    whole_shards = [p.stem for p in (store / "shards").glob("*.json")]
    built = {
        path: path.stat().st_mtime_ns
        for path in (store / "train" / f"{name}.tok" for name in whole_shards)
    }
    resumed = run(2, words, resume="auto")
    assert resumed["code"] == 0, resumed["message"]
    assert resumed["losses"] == whole["losses"] and resumed["eval"] == whole["eval"]
    assert built and {path: path.stat().st_mtime_ns for path in built} == built


def test_a_killed_builder_ends_the_run_on_all_ranks(
    large: Path, tokenizer: str, tmp_path: Path
) -> None:
    """The builder is killed after some windows, before the trainer has the data it needs."""
    store = tmp_path / "a" / "store"
    more = (
        *STREAMING,
        tokenizer,
        "train.max_steps=5000",
        "train.save_steps=5000",
        "train.global_batch_tokens=16384",
    )
    more = (*more, "train.dataloader_num_workers=1", "train.sequence_length=512")
    words = words_on(large, tmp_path / "a")(tmp_path / "run", *more)

    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(list((store / "shards").glob("*.json"))) < 12 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(
            json.loads(store.with_name(f".{store.name}.lock").read_text())["pid"], signal.SIGKILL
        )

    killer = threading.Thread(target=kill)
    killer.start()
    ended = run(2, words)
    killer.join()
    assert ended["code"] == 4 and ended["exit"]["code"] == 4
    assert "The process that builds the token store died" in ended["message"]
    assert "killed by signal 9" in ended["message"] and ended["losses"]


@pytest.mark.deep  # test_growing.py has the reason, test_a_killed_builder the end of all ranks
def test_a_bad_file_in_the_middle_ends_the_run_with_its_line(
    large: Path, tokenizer: str, tmp_path: Path
) -> None:
    lines = large.read_text(encoding="utf-8").splitlines()[:200]
    source = tmp_path / "bad.jsonl"
    source.write_text("\n".join([*lines, *["{"] * 300, *lines]), encoding="utf-8")
    more = (
        *STREAMING,
        tokenizer,
        "train.max_steps=5000",
        "train.save_steps=5000",
        "train.global_batch_tokens=16384",
    )
    ended = run(
        2, words_on(source, tmp_path / "a")(tmp_path / "run", *more, "train.sequence_length=512")
    )
    assert ended["code"] == 4 and ended["exit"]["code"] == 4
    assert "records cannot be read" in ended["message"] and f"{source}:201" in ended["message"]
    assert ended["losses"], "it trained on what stood before"


@pytest.mark.deep
def test_a_corpus_smaller_than_a_global_batch_is_refused_as_when_it_is_prepared(
    corpus: Path, tmp_path: Path
) -> None:
    more = (*STREAMING, "train.global_batch_tokens=1048576")
    with slow_builder(tmp_path / "a" / "store", until=tmp_path / "streamed" / "plan.json"):
        streamed = run(2, words_on(corpus, tmp_path / "a")(tmp_path / "streamed", *more))
    assert "training starts on the first 2 shards" in streamed["output"], (
        "it was finished before training began"
    )
    prepared = run(
        2, words_on(corpus, tmp_path / "a")(tmp_path / "prepared", *more, "data.streaming=off")
    )
    assert streamed["code"] == prepared["code"] == 2 and not streamed["losses"]
    assert "less than one global batch" in prepared["message"]
    assert streamed["message"].splitlines()[::2] == prepared["message"].splitlines()[::2]


def test_a_checkpoint_does_not_go_on_over_shards_that_were_built_again_otherwise(
    corpus: Path, tmp_path: Path
) -> None:
    more = (*STREAMING, "data.streaming=auto", "train.save_steps=2")
    words = words_on(corpus, tmp_path / "a")(tmp_path / "run", *more)
    assert run(1, words, signal_at=3)["code"] == 75
    store = tmp_path / "a" / "store"
    for path in (store / "shards" / "00000.json", *store.glob("manifest.json")):
        content = json.loads(path.read_text())
        shard = content["shards"][0] if "shards" in content else content
        shard["splits"]["train"]["tok_sha256"] = "0" * 64
        path.write_text(json.dumps(content))
    refused = run(1, words, resume="auto")
    assert (
        refused["code"] == 6
        and "trained on other tokens than its store holds" in refused["message"]
    )
