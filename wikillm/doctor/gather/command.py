"""Runs a small tool and reads small files of /proc and /sys: bounded in time, and silence instead of exceptions."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Answer:
    """`error` is "" when the tool ended with 0."""

    text: str
    error: str


def ask(*argv: str, timeout: float = 8.0) -> Answer:
    """What `argv` prints. Missing, failing and silent tools differ in `error`."""
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
        return Answer("", f"{argv[0]} is not installed")
    except subprocess.TimeoutExpired:
        return Answer("", f"{argv[0]} said nothing for {timeout:.0f} s")
    except OSError as error:
        return Answer("", f"{argv[0]}: {error.strerror}")
    if done.returncode == 0:
        return Answer(done.stdout, "")
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return Answer(done.stdout, said[0] if said else f"{argv[0]} ended with {done.returncode}")


def read(path: Path | str) -> str:
    """The text of a small file, stripped; "" when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(text: str) -> int | None:
    """A whole number, or None."""
    try:
        return int(text)
    except ValueError:
        return None
