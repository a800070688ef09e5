"""Runs functions side by side with one time limit: one that hangs is left behind and named."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from wikillm.core.log import logger


def run_in_time(
    functions: Mapping[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """(results, errors) by name. Daemon threads: a name lookup or a dead mount may never return."""
    answers: queue.Queue[tuple[str, Any, str]] = queue.Queue()

    def work(name: str, function: Callable[[], Any]) -> None:
        try:
            answers.put((name, function(), ""))
        except Exception as error:
            logger.warning("gathering %s", name, exc_info=error)
            answers.put((name, None, f"{type(error).__name__}: {error}"))

    for name, function in functions.items():
        threading.Thread(target=work, args=(name, function), daemon=True, name=name).start()
    found: dict[str, Any] = {}
    errors = dict.fromkeys(functions, f"no answer within {seconds:.0f} s")
    end = time.monotonic() + seconds
    for _ in functions:
        try:
            name, value, error = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        found[name] = value
        del errors[name]
        if error:
            errors[name] = error
    return found, errors
