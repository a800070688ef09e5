"""Runs that others are compared with: each is trained once per session, by the test process that first asks for it."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.tiny_run import Words, run


class References:
    """`references(world, "train.x=y", ..., deepspeed=recipe)`: the result of that tiny run, and its `folder`."""

    def __init__(self, place: Path, words: Words) -> None:
        self.place = place
        self.words = words

    def __call__(self, world: int, *more: str, **options: Any) -> dict[str, Any]:
        """Train the run, or read what it gave before. Its folder must not be changed. Raises on another code than 0."""
        key = repr((world, more, sorted(options.items())))
        folder = self.place / hashlib.sha256(key.encode()).hexdigest()[:12]
        with FileLock(f"{folder}.lock"):
            kept = folder / "result.pickle"
            if not kept.exists():
                result = run(world, self.words(folder / "run", *more), **options)
                assert result["code"] == 0, result["message"]
                kept.write_bytes(pickle.dumps(result))
            return pickle.loads(kept.read_bytes()) | {"folder": folder / "run"}
