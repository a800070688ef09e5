"""Runs small tools and functions with a time limit, without exceptions."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from wikillm.core.log import logger

TOOL_SECONDS = 8.0
T = TypeVar("T")


def run_tool(*argv: str) -> tuple[str, str]:
    """(output, error) of a tool. The error is "" if the tool ended with 0."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        return "", f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return "", f"{argv[0]} did not answer within {TOOL_SECONDS:.0f} s"
    except OSError as error:
        return "", f"{argv[0]}: {error.strerror}"
    if done.returncode == 0:
        return done.stdout, ""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.stdout, lines[0] if lines else f"{argv[0]} ended with {done.returncode}"


def in_time(jobs: Mapping[str, Callable[[], T]], seconds: float) -> dict[str, T]:
    """The results of the jobs that return within `seconds`, by name.

    Each job runs in a daemon thread, since a name lookup or a dead mount may never return.
    """
    results: dict[str, T] = {}

    def work(name: str) -> None:
        try:
            results[name] = jobs[name]()
        except Exception as error:
            logger.warning("doctor: %s", name, exc_info=error)

    end = time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(results)
