"""Refreshes RUN/report.html at a checkpoint, off the path of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from wikillm.report.background import REFRESH_SECONDS, PageRefresh


class PageCallback(TrainerCallback):
    """Rank 0 alone has it. The page of the end is written by `exit.ending`."""

    def __init__(self, run: Path, every: float = REFRESH_SECONDS) -> None:
        self._page = PageRefresh(run, every)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._page.refresh()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._page.close()
