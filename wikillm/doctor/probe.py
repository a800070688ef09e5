"""Runs small tools and reads small files of /proc and /sys: bounded in time, without exceptions."""

from __future__ import annotations

import subprocess
from pathlib import Path


def run_tool(*argv: str, timeout: float = 8.0) -> tuple[str, str]:
    """(output, error) of a tool; the error is "" when it ended with 0."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        return "", f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return "", f"{argv[0]} did not answer within {timeout:.0f} s"
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


def number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
