"""Runs small tools and reads small files of /proc and /sys: bounded in time, without exceptions."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wikillm.core.log import logger

TOOL_SECONDS = 8.0


def run_tool(*argv: str) -> tuple[str, str]:
    """(output, error) of a tool; the error is "" when it ended with 0."""
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


def read(path: Path | str) -> str:
    """The stripped text of a small file, "" when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


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
