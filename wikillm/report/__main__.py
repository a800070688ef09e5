"""`python -m wikillm.report RUN`: write RUN/report.html at low priority, during training."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wikillm.report.page import write_report

if __name__ == "__main__":
    os.nice(10)
    write_report([Path(sys.argv[1])])
