"""Draw the losses of a run as an SVG: training, validation, and a unigram model beside them.

    # 6.7708 is the unigram model's loss as `wikillm eval` prints it.
    python benchmarks/plot_run.py runs/demo --out loss.svg --unigram 6.7708

Reads RUN/metrics.jsonl and RUN/events.jsonl only. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder, so that `benchmarks` is a package

from wikillm.observe.sinks import read_metrics, read_records  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unigram", type=float, help="nats/token of the unigram baseline")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "wikillm"  # the same run gives the same file
    from matplotlib import pyplot

    metrics = read_metrics(arguments.run / "metrics.jsonl")
    tokens_at = {record["step"]: record["tokens"] for record in metrics}
    evaluations = [
        record
        for record in read_records(arguments.run / "events.jsonl")
        if record["kind"] == "eval" and record["step"] in tokens_at
    ]
    figure, axes = pyplot.subplots(figsize=(7.2, 2.9))
    axes.plot(
        [record["tokens"] / 1e3 for record in metrics],
        [record["loss"] for record in metrics],
        color="#3b6fb6",
        label="training",
    )
    axes.plot(
        [tokens_at[record["step"]] / 1e3 for record in evaluations],
        [record["eval_loss"] for record in evaluations],
        "o",
        color="#c44e2f",
        label="validation",
    )
    if arguments.unigram:
        axes.axhline(arguments.unigram, color="#777777", linestyle="--", label="unigram model")
    axes.set_xlabel("thousand tokens")
    axes.set_ylabel("loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
