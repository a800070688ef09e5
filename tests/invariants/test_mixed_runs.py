"""Training on a mixture: equal for every number of ranks, exact on resume, counted by source."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.corpus import write_corpus
from harness.ledgers import assert_proven
from harness.programs import tensor_digest
from harness.tiny_run import TINY, run

from wikillm.observe.sinks import read_metrics, read_records

L2 = 2e-5


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_corpus(folder / "zh.jsonl", size=120_000, seed=1)
    write_corpus(folder / "en.jsonl", size=60_000, seed=2, chinese_share=0.0)
    return folder


def words(corpora: Path, run_dir: Path, *more: str, weights: tuple[int, int] = (3, 1)) -> list[str]:
    sources = [
        f"{{name: {name}, weight: {weight}, path: {corpora}/{name}.jsonl, "
        f"store: {corpora}/{name}-store}}"
        for name, weight in zip(("zh", "en"), weights, strict=True)
    ]
    # The first run builds both stores, with one tokenizer. Later runs find them.
    return [f"data.mixture=[{', '.join(sources)}]", *TINY, f"run.dir={run_dir}", *more]


def test_mixed_runs_are_equal_resumed_exactly_and_counted(corpora: Path, tmp_path: Path) -> None:
    one = run(1, words(corpora, tmp_path / "one"))
    assert one["code"] == 0, one["message"]
    two = run(2, words(corpora, tmp_path / "two"))
    assert two["code"] == 0, two["message"]
    worst = max(
        abs(a - b) / b for a, b in zip(one["losses"].values(), two["losses"].values(), strict=True)
    )
    assert (
        worst <= L2
        and len(two["losses"]) == 8
        and two["eval"] == pytest.approx(one["eval"], rel=L2)
    )
    _check_records(tmp_path / "two", two["output"])
    assert_proven(tmp_path / "two", 8)

    stopped = run(2, words(corpora, tmp_path / "parts"), signal_at=2, signal_rank=1)
    assert stopped["code"] == 75, stopped["message"]
    other = run(2, words(corpora, tmp_path / "parts", weights=(2, 1)), resume="auto")
    assert other["code"] == 6
    assert (
        "mixture: zh 3072/4096, en 1024/4096 then, zh 2731/4096, en 1365/4096 now"
        in other["message"]
    )
    resumed = run(2, words(corpora, tmp_path / "parts"), resume="auto")
    assert resumed["code"] == 0, resumed["message"]
    assert_proven(tmp_path / "parts", 8, segments=2)
    assert resumed["losses"] == two["losses"] and resumed["eval"] == two["eval"]
    assert (
        len(
            {
                tensor_digest(tmp_path / name / "checkpoints" / "checkpoint-8")
                for name in ("two", "parts")
            }
        )
        == 1
    )


def _check_records(run_dir: Path, output: str) -> None:
    last = read_metrics(run_dir / "metrics.jsonl")[-1]
    assert (last["source_samples/zh"], last["source_samples/en"]) == (48, 16)
    assert last["source_tokens/zh"] + last["source_tokens/en"] == last["tokens"]
    (evaluation,) = [e for e in read_records(run_dir / "events.jsonl") if e["kind"] == "eval"]
    assert evaluation["eval_loss/zh"] != evaluation["eval_loss/en"]
    assert min(evaluation["eval_loss/zh"], evaluation["eval_loss/en"]) < evaluation["eval_loss"]
    assert "source     zh: 75.00% of the samples" in output and "epochs" in output
    assert "weighted by held-out tokens (zh " in output and "not by data.mixture" in output
