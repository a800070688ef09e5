"""Draw the losses of a run as an SVG: training, validation, and a unigram model beside them.

    # 6.7708 is the unigram model's loss as `wikillm eval` prints it.
    python benchmarks/plot_run.py runs/demo --out loss.svg --unigram 6.7708

The curve is that of `wikillm report`, as a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder, so that `benchmarks` is a package

from wikillm.report.figures import loss_plot  # noqa: E402
from wikillm.report.plot import svg_file  # noqa: E402
from wikillm.report.run_files import read_run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unigram", type=float, help="nats/token of the unigram baseline")
    arguments = parser.parse_args()
    levels = [(arguments.unigram, "unigram model")] if arguments.unigram else []
    arguments.out.write_text(svg_file(loss_plot(read_run(arguments.run), levels)))


if __name__ == "__main__":
    main()
